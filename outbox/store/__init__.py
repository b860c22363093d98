"""Where facts are kept. A store decides nothing: it reads what is wanted and writes what was decided."""
