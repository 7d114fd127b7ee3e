"""Where models come from: folders, files, the Hub, built-in names; all become a folder that can be opened.

Knows the network and the cache; reads no weights. Front door: `resolve.resolve`.
"""
