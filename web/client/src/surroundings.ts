/** What the page and the machine say: hidden or not, online or not. In Node there is nobody to say it. */

interface Source {
  addEventListener(type: string, listener: () => void): void;
  removeEventListener(type: string, listener: () => void): void;
}

/** Where to listen; a browser's own by default. */
export interface Surroundings {
  readonly document?: (Source & { readonly hidden: boolean }) | undefined;
  readonly window?: Source | undefined;
}

export interface Listener {
  hidden(): void;
  visible(): void;
  online(): void;
  offline(): void;
}

/** The browser that this runs in, or nothing. */
export function ownSurroundings(): Surroundings {
  const here = globalThis as { document?: Surroundings["document"]; window?: Source };
  return { document: here.document, window: here.window };
}

/** Tell a listener how it is and what changes, until the returned function is called. */
export function listen(surroundings: Surroundings, listener: Listener): () => void {
  const { document: page, window: machine } = surroundings;
  const look = (): void => {
    if (page?.hidden) listener.hidden();
    else listener.visible();
  };
  const online = (): void => listener.online();
  const offline = (): void => listener.offline();
  look();
  page?.addEventListener("visibilitychange", look);
  machine?.addEventListener("pageshow", look);
  machine?.addEventListener("online", online);
  machine?.addEventListener("offline", offline);
  return () => {
    page?.removeEventListener("visibilitychange", look);
    machine?.removeEventListener("pageshow", look);
    machine?.removeEventListener("online", online);
    machine?.removeEventListener("offline", offline);
  };
}
