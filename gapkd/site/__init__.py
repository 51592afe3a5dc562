"""The course as a web site. `make site`, or `python -m gapkd.site`, builds it from a clone.

Pages are put together (pages, options), rendered by sphinx (conf, rendering) and looked through for dead links (links).
No chapter is executed and nothing is fetched while it is built; a page that is opened asks no other host for anything.
"""
