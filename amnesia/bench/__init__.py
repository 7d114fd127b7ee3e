"""Figures that can be compared: many edited models, whatever made them, under one frozen contract.

A suite says what is asked and how it is judged, and hashes it. Knows models only through `live` and what two of them
have in common through `compare`.
Front doors: `run.run_bench`, `suites.fact_suite`, `rwku.read_rwku`, `page.write_bench`.
"""
