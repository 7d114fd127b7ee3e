"""What the upstream table of PopQA has (Mallen et al., 2023): the columns that are read here, and all relations."""

COLUMNS = ("id", "subj", "prop", "obj", "s_pop", "o_pop", "question", "possible_answers")
RELATIONS = {
    "author", "capital", "capital of", "color", "composer", "country", "director", "father", "genre", "mother",
    "occupation", "place of birth", "producer", "religion", "screenwriter", "sport",
}  # fmt: skip
