"""Where models come from: folders, files, the Hub, built-in names; all become a folder that can be opened.

Knows the network and the caches; of weights only how a checkpoint lies there, never an edit.
Front doors: `resolve.resolve`, `remote.open_remote` for a model of which only some tensors are read, `views.shown`
for what transformers and PEFT may see of a folder.
"""
