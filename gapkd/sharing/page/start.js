// A classic script, because modules do not load from a file:// page: says what is wrong, or starts the page.
(() => {
  const say = (text) => {
    const message = document.getElementById("message");
    message.textContent = text;
    message.hidden = false;
    document.getElementById("loading").hidden = true;
    document.querySelector("main").hidden = !document.querySelector("figure"); // nothing in it would work
  };
  try {
    const theme = localStorage.getItem("gapkd-theme");
    if (theme) document.documentElement.dataset.theme = theme;
  } catch { /* no storage, no memory of the theme */ }
  if (location.protocol === "file:")
    say("Opened as a file, this page may not read its networks: " +
      "run python -m http.server --bind 127.0.0.1 in its folder, and open the address that it prints.");
  else
    import("./app.js").then(({ main }) => main(say)).catch((error) =>
      say(error instanceof TypeError && /module|import/i.test(error.message)
        ? "A script of this page is missing, or too new for this browser: " +
          "update the browser, or write the page again with gapkd demo."
        : error.message));
})();
