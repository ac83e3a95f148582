// The service's API, read with the viewer's key.

/** An answer that is no success; `status` is HTTP's. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  #key;
  #leaving = new AbortController();

  constructor(key) {
    this.#key = key;
  }

  /** The JSON of GET /v1 + path. Throws ApiError, or TypeError when the gateway is out of reach. */
  async get(path) {
    const response = await fetch(new URL(`../v1${path}`, document.baseURI), {
      headers: { authorization: `Bearer ${this.#key}` },
      cache: "no-store",
      credentials: "omit",
      signal: this.#leaving.signal,
    });
    const body = await response.json();
    if (!response.ok) throw new ApiError(response.status, body.error.message);
    return body;
  }

  /** The rows of a list. */
  async list(path) {
    return (await this.get(path)).data;
  }

  /** End what is still under way; nothing is asked with this key any more. */
  close() {
    this.#leaving.abort();
  }
}
