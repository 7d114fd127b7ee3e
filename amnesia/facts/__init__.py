"""Language: entities and their wordings, relations, tables of facts, questions, answers, neutral texts.

Knows sentences and names, from data files of its own; knows no model.
Front doors: `questions.questions_of`, `popqa.read_popqa`, `names.entity_templates`.
"""
