"""The folder of JSON files: one folder a session, in the specification's layout. Files only.

What lies there can be read and edited by people, with any editor. `state.py` has what this side
knows of each file, so that damage, a person's edit and what was written here can be told apart.
"""
