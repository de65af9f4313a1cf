"""Writes that are not lost: journaled, performed until they are done, and sent again."""
