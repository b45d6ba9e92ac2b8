"""The page of a study: its answer, its clips to listen to, its plots and tables, and what it was made with."""
