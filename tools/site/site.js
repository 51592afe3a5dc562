// The pages that draw, in their frames, are as light or dark as the page around them.
const root = document.documentElement;
const follow = ({ contentDocument }) => {
  if (contentDocument) contentDocument.documentElement.dataset.theme = root.dataset.theme;
};
const frames = () => document.querySelectorAll(".demo iframe");
new MutationObserver(() => frames().forEach(follow)).observe(root, { attributeFilter: ["data-theme"] });
addEventListener("DOMContentLoaded", () => frames().forEach((frame) => {
  frame.addEventListener("load", () => follow(frame));
  follow(frame);
}));
