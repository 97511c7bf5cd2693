class Redirect:
    """What a node's error line means for a request. One per worker, made by Exchange."""

    max_redirections: int
