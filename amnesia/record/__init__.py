"""The erasure record of an output: what was asked, what was changed, what was tested, what comes back.

Reads finished folders and reports; measures nothing, and never builds a model.
Front doors: `making.make_record`, `page.record_html`.
"""
