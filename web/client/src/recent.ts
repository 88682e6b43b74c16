/** The ids that were seen last, a bounded number of them. */
export class RecentIds {
  readonly #ids = new Set<string>();

  constructor(readonly most: number) {}

  /** Remember an id; false when it was known. The oldest leaves when there are too many. */
  add(id: string): boolean {
    if (this.#ids.has(id)) return false;
    this.#ids.add(id);
    if (this.#ids.size > this.most) {
      for (const oldest of this.#ids) {
        this.#ids.delete(oldest);
        break;
      }
    }
    return true;
  }
}
