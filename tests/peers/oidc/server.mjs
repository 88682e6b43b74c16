// A certified OpenID provider on loopback for the tests of our issuers and of the token manager.
// It agrees to every sign-in at once, rotates refresh tokens and ends a sign-in when a spent one comes back.
// Prints one line of JSON with its address, and ends with its standard input.
import http from 'node:http';

import Provider from 'oidc-provider';

const { secret, redirectUri, accessLifetime } = JSON.parse(process.env.OIDC_PEER);

const client = (id, method, grants) => ({
  client_id: id,
  ...(method === 'none' ? {} : { client_secret: secret }),
  token_endpoint_auth_method: method,
  grant_types: grants,
  redirect_uris: grants.includes('authorization_code') ? [redirectUri] : [],
  response_types: grants.includes('authorization_code') ? ['code'] : [],
});

const configuration = {
  clients: [
    client('basic', 'client_secret_basic', ['authorization_code', 'refresh_token', 'client_credentials']),
    client('post', 'client_secret_post', ['authorization_code', 'refresh_token', 'client_credentials']),
    client('public', 'none', ['authorization_code', 'refresh_token']),
    { ...client('machine', 'client_secret_basic', ['client_credentials']), scope: 'api' },
  ],
  cookies: { keys: ['only for tests'] },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true },
    revocation: { enabled: true },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (ctx, interaction) => `/agree/${interaction.uid}` },
  issueRefreshToken: (ctx, c) => c.grantTypeAllowed('refresh_token'),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  scopes: ['openid', 'offline_access', 'api', 'orders'],
  ttl: {
    AccessToken: accessLifetime, ClientCredentials: accessLifetime, Grant: 3600, IdToken: 3600, Interaction: 600,
    RefreshToken: 3600, Session: 3600,
  },
};

const server = http.createServer();
server.listen(0, '127.0.0.1', () => {
  const url = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(url, configuration);
  provider.use(async (ctx, next) => {
    if (!ctx.path.startsWith('/agree/')) return next();
    const { params, prompt } = await provider.interactionDetails(ctx.req, ctx.res);
    const accountId = 'trader';
    const grant = new provider.Grant({ accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    const answer = prompt.name === 'login' ? { login: { accountId } } : { consent: { grantId: await grant.save() } };
    return ctx.redirect(await provider.interactionResult(ctx.req, ctx.res, answer, { mergeWithLastSubmission: true }));
  });
  server.on('request', provider.callback());
  process.stdout.write(`${JSON.stringify({ url })}\n`);
});

process.stdin.on('end', () => process.exit(0)).resume();
