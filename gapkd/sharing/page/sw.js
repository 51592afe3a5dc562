// Keeps the page's files, so that a second visit works without a connection; with one, the server's are taken.
// gapkd demo writes NUMBER, which changes with any file, and FILES above this line.

const NAME = `gapkd ${self.registration.scope} `;
const CACHE = NAME + NUMBER;
const unused = self.location.search === "?webgpu" ? FILES.wasm : FILES.webgpu; // of the two runtimes
const kept = ["./", ...FILES.page, ...FILES.wasm, ...FILES.webgpu].filter((file) => !unused.includes(file));

self.addEventListener("install", (event) => {
  const fresh = kept.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const old = (names) => names.filter((name) => name.startsWith(NAME) && name !== CACHE);
  const clear = caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name))));
  event.waitUntil(clear.then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const stored = async (error) => {
    const found = await (await caches.open(CACHE)).match(event.request, { ignoreSearch: true });
    if (!found) throw error;
    return found;
  };
  if (event.request.method === "GET") event.respondWith(fetch(event.request).catch(stored));
});
