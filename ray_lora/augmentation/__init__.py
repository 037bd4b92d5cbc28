"""Training rows altered as they are drawn: what a task shows of a row, altered by a recipe's transforms."""
