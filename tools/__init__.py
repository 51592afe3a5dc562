"""What maintainers run, from the repository's root: `python -m tools.benchmark`, tools.growth,
tools.data_card, tools.readme, tools.site. It imports gapkd; nothing in gapkd imports it."""
