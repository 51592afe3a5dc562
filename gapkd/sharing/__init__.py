"""Export, the hub, the page in the browser."""
