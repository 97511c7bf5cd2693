"""Main process and workers: messages (what they say), settings (what a worker is told), channel (how it travels)."""

from typing import Final

EXIT_VERSION: Final = 79  # exit code of a worker whose installation is not the main process's version
