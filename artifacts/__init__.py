"""The ground floor: what the stages share. Files written whole or not at all, errors a user can act on,
the layout of a run. Standard library only at import; nothing here imports another of the project's packages."""
