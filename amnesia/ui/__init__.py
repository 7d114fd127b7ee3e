"""A page in the browser of this machine: a name, its cells, an edit under sliders, answers before and after, files.

Knows HTTP, one worker thread and what is asked of the model there; whoever has not the page's address gets nothing.
Front door: `server.serve`; the page itself is a template.
"""
