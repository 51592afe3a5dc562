// The page's side of the worker: a question, a promise.

export class Engine {
  #worker;
  #waiting = new Map();
  #count = 0;

  /** device: "wasm" or "webgpu"; onProgress(have, total): bytes of all files that have been asked for so far. */
  constructor(device, onProgress) {
    this.device = device;
    this.#worker = new Worker(`worker.js#${device}`, { type: "module" });
    const files = new Map();
    this.#worker.onmessage = ({ data }) => {
      if (data.progress) {
        files.set(data.progress.name, data.progress);
        const sum = (key) => [...files.values()].reduce((all, file) => all + file[key], 0);
        return onProgress(sum("have"), Math.max(sum("have"), sum("total")));
      }
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      return data.error ? reject(new Error(data.error)) : resolve(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error("worker.js is missing, or too new for this browser: " +
        "update the browser, or write the page again with gapkd demo.");
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
  }

  stop() {
    this.#worker.terminate();
  }

  ask(kind, question) {
    return new Promise((resolve, reject) => {
      const id = ++this.#count;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, kind, ...question });
    });
  }
}
