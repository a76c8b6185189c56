"""Judging guards by labelled files, and answers by a reference.

`rows` reads files, `runs` puts them through a guard, `report` says how good it was; `scores`, `spans`, `ranking`
and `tables` are the arithmetic behind it, pure numpy. `text_metrics` compares an answer with a reference; the guard
`reference` uses it.
"""
