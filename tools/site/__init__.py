"""The course as a web site: `make site`, or `python -m tools.site`, builds it from a clone.

Pages are copied together (__main__), rendered by sphinx (conf) and looked through for what a
browser would fetch from another host. No chapter is executed; an opened page asks nobody else.
"""
