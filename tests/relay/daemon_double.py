"""A daemon for tests: the real codec behind a small asyncio server, with tokens that the test hands out."""

import asyncio

from keepline.errors import ConfigError
from keepline.relay.local import LocalServerSession, token_object


class DaemonDouble:
    """Listens at a path; `publish` renews a token for all subscribers."""

    def __init__(self, path):
        self.path = path
        self.tokens = {}
        self.requests = []
        self.answering = True
        self.connections = []
        self.subscribed = asyncio.Event()
        self._server = None

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(self.path))
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        self.drop()

    def drop(self):
        for client in list(self.connections):
            client.transport.abort()

    def publish(self, credential, token):
        self.tokens[credential] = token
        for client in self.connections:
            if credential in client.credentials:
                client.session.event(credential, token)
                client.flush()


class _Client(asyncio.Protocol):
    def __init__(self, daemon):
        self.daemon = daemon
        self.session = LocalServerSession()
        self.credentials = set()

    def connection_made(self, transport):
        self.transport = transport
        self.daemon.connections.append(self)

    def connection_lost(self, error):
        self.daemon.connections.remove(self)

    def data_received(self, data):
        for request in self.session.receive(data):
            self.daemon.requests.append(request)
            if self.daemon.answering:
                self.answer(request)
        self.flush()

    def flush(self):
        self.transport.write(self.session.take())

    def answer(self, request):
        daemon = self.daemon
        known = request.credential in daemon.tokens
        match request.op:
            case "hello":
                result = {"server": "keepline", "protocol": 1, "credentials": sorted(daemon.tokens)}
                self.session.reply(request, result)
            case "ping":
                self.session.reply(request, {"time": 1.0})
            case "status":
                self.session.reply(request, {"state": "fine"})
            case _ if not known:
                self.session.fail(request, ConfigError(f"no credential {request.credential}"))
            case "token.subscribe":
                self.credentials.add(request.credential)
                token = daemon.tokens[request.credential]
                self.session.reply(request, token_object(token) if token else {})
                daemon.subscribed.set()
            case _:
                self.session.reply(request, token_object(daemon.tokens[request.credential]))
