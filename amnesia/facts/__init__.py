"""Language: entities and their wordings, relations, tables of facts, questions, answers, neutral texts.

Knows no model. Front doors: `questions.questions_of`, `popqa.read_popqa`.
"""
