"""Queues of small frames, and labellers whose calls are counted."""

from support.queues import diary, fill, springs  # noqa: F401
