"""Finished folders: writing them, proving them from their bytes, undoing, editing in place, replaying, comparing.

Knows manifests and every format; builds no model.
Front doors: `write.save`, `proofs.prove_against`, `proofs.take_back`, `in_place.edit_in_place`, `replay.replay`,
`diff.diff`.
"""
