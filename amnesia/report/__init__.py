"""The report of a run: `report.json`, its tables on the terminal, and one page that needs no network.

Knows results, never a model.
Front doors: `document.report_json`, `content.read_report`, `tables.run_text`, `page.report_html`.
"""
