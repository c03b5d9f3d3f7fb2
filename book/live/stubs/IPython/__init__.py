"""The little of IPython that libraries ask for when they show something; the page has its own."""


def get_ipython() -> None:
    """No IPython runs here."""
