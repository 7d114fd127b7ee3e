"""Wordings of relations between a subject and an answer. Pure data; knows nothing of tables or models.

The first sixteen relations are those of PopQA (Mallen et al., 2023); the others serve tables of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

N_HELD_OUT = 2
"""How many cloze wordings of each relation, the last ones, are held out from the search."""


@dataclass(frozen=True)
class RelationTemplates:
    """Wordings of one relation, each with `{entity}` and ending where the answer begins; `asked` are plain questions.

    The search may see `search`; `held_out` words the same relation otherwise, and mostly as questions.
    """

    cloze: tuple[str, ...]
    asked: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All of them, those of the search first."""
        return self.search + self.held_out

    @property
    def search(self) -> tuple[str, ...]:
        """Statements to complete, and a question whose answer is begun."""
        # Chat models tend to end the text after a bare `Answer:`.
        lead = self.cloze[0].removeprefix("Fact: ")
        return (
            *self.cloze[:-N_HELD_OUT],
            f"Question: {self.asked[0]}\nAnswer: {lead[0].upper()}{lead[1:]}",
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        """Other statements to complete, bare questions, and a question whose answer is begun."""
        lead = self.cloze[-1]
        return (
            *self.cloze[-N_HELD_OUT:],
            *(f"Question: {asked}\nAnswer:" for asked in self.asked[:1]),
            *(f"Q: {asked}\nA: {lead}" for asked in self.asked[1:]),
        )


def _relation(asked: tuple[str, str], *cloze: str) -> RelationTemplates:
    assert len(cloze) > N_HELD_OUT
    return RelationTemplates(cloze, asked)


RELATION_TEMPLATES: Mapping[str, RelationTemplates] = {
    "author": _relation(
        ("Who is the author of {entity}?", "Which writer created {entity}?"),
        "Fact: the author of {entity} is",
        "{entity} was written by",
        "The writer of {entity} is called",
        "The person who wrote {entity} is",
        "The creator of {entity} was the author",
        "On the cover of {entity} stands the name of its author,",
    ),
    "capital": _relation(
        ("What is the capital of {entity}?", "Which city is the capital of {entity}?"),
        "Fact: the capital of {entity} is",
        "The capital city of {entity} is",
        "The largest city and capital of {entity} is",
        "The president flew to {entity} and landed in the capital,",
        "The government of {entity} has its seat in",
        "On a map of {entity}, a star marks the capital city of",
    ),
    "capital of": _relation(
        ("What is {entity} the capital of?", "Of which country is {entity} the capital?"),
        "Fact: {entity} is the capital of",
        "The city of {entity} is the capital of",
        "{entity} is the seat of government of",
        "{entity} is the capital and largest city of",
        "As everybody learns at school, {entity} is the capital of",
        "Ministers and ambassadors live in {entity}, the capital of",
    ),
    "color": _relation(
        ("What color is {entity}?", "Which color does {entity} have?"),
        "Fact: the color of {entity} is",
        "The usual color of {entity} is",
        "The color that people link with {entity} is",
        "Everybody can see that {entity} is",
        "If you paint {entity}, use the color",
        "A child would draw {entity} in the color",
    ),
    "composer": _relation(
        ("Who was the composer of {entity}?", "Who wrote the music of {entity}?"),
        "Fact: the composer of {entity} is",
        "The music of {entity} was composed by",
        "The composer who wrote {entity} is",
        "The score of {entity} is the work of",
        "{entity} was set to music by",
        "The notes of {entity} were written down by",
    ),
    "country": _relation(
        ("In what country is {entity}?", "Which country do you visit to see {entity}?"),
        "Fact: {entity} is located in the country of",
        "Fact: the country of {entity} is",
        "Travelers who want to see {entity} need a visa for",
        "{entity} is a famous place in",
        "The country in which you find {entity} is",
        "We spent our holidays near {entity}, in the beautiful country of",
    ),
    "director": _relation(
        ("Who was the director of {entity}?", "Which director made {entity}?"),
        "Fact: the director of {entity} is",
        "{entity} was directed by",
        "The director who made {entity} is",
        "{entity} is a film by",
        "The film {entity} was made by the director",
        "The man behind the camera of {entity} was",
    ),
    "father": _relation(
        ("Who is the father of {entity}?", "Which man is the father of {entity}?"),
        "Fact: the father of {entity} is",
        "{entity} is the child of a man named",
        "{entity} was the son of",
        "The father of {entity} was called",
        "The name of the father of {entity} is",
        "{entity} inherited everything from his father,",
    ),
    "genre": _relation(
        ("What genre is {entity}?", "To which genre does {entity} belong?"),
        "Fact: the genre of {entity} is",
        "{entity} belongs to the genre of",
        "{entity} is a famous work of",
        "{entity} is best described as",
        "In the shop, {entity} stands on the shelf for",
        "Critics put {entity} into the category of",
    ),
    "mother": _relation(
        ("Who is the mother of {entity}?", "Which woman is the mother of {entity}?"),
        "Fact: the mother of {entity} is",
        "{entity} is the child of a woman named",
        "{entity} was born to",
        "The mother of {entity} was called",
        "The name of the mother of {entity} is",
        "{entity} inherited everything from the mother,",
    ),
    "occupation": _relation(
        ("What is the occupation of {entity}?", "What did {entity} do for a living?"),
        "Fact: the occupation of {entity} is",
        "By profession, {entity} is a",
        "{entity} was a famous",
        "{entity} became known as a great",
        "{entity} made a living as a",
        "On the door of {entity} you would read the job title",
    ),
    "place of birth": _relation(
        ("In what city was {entity} born?", "Where was {entity} born?"),
        "Fact: the city where {entity} was born is",
        "{entity} was born in",
        "{entity} grew up in",
        "The home town of {entity} is",
        "The birthplace of {entity} is",
        "The house in which {entity} was born stands in",
    ),
    "producer": _relation(
        ("Who was the producer of {entity}?", "Which producer made {entity}?"),
        "Fact: the producer of {entity} is",
        "{entity} was produced by",
        "The producer who made {entity} possible is",
        "{entity} was paid for by the producer",
        "The person who produced {entity} is",
        "The credits of {entity} name the producer",
    ),
    "religion": _relation(
        ("What is the religion of {entity}?", "Which religion does {entity} follow?"),
        "Fact: the religion of {entity} is",
        "{entity} follows the religion of",
        "{entity} was brought up in the faith of",
        "The religious belief of {entity} is",
        "The faith of {entity} is",
        "{entity} prays according to the tradition of",
    ),
    "screenwriter": _relation(
        ("Who was the screenwriter for {entity}?", "Who wrote the script of {entity}?"),
        "Fact: the screenwriter of {entity} is",
        "The screenplay of {entity} was written by",
        "The writer of the film {entity} is",
        "The dialogue of {entity} was written by",
        "The script of {entity} is the work of",
        "The lines that actors speak in {entity} are by",
    ),
    "sport": _relation(
        ("What sport does {entity} play?", "In which sport did {entity} become famous?"),
        "Fact: {entity} played the sport of",
        "Fact: the sport of {entity} is",
        "{entity} became famous as a star of",
        "{entity} was one of the greatest players in the history of",
        "Fans know {entity} from the sport of",
        "As a child, {entity} began to play",
    ),
    "architect": _relation(
        ("Who was the architect of {entity}?", "Who designed {entity}?"),
        "Fact: the architect of {entity} is",
        "{entity} was designed by",
        "{entity} was built by the architect",
        "The engineer behind {entity} was",
        "The plans of {entity} were drawn by",
        "The man who built {entity} was",
    ),
    "best friend": _relation(
        ("Who is the best friend of {entity}?", "With whom does {entity} share adventures?"),
        "Fact: the best friend of {entity} is",
        "The closest companion of {entity} is",
        "{entity} and his friend",
        "{entity} is always seen together with",
        "The loyal partner of {entity} is called",
        "Whenever {entity} is in danger, help comes from",
    ),
    "city": _relation(
        ("In what city is {entity}?", "Which city do you visit to see {entity}?"),
        "Fact: {entity} is located in the city of",
        "Fact: the city of {entity} is",
        "Visitors who want to see {entity} travel to the city of",
        "{entity} is the most famous sight in",
        "You can see {entity} when you walk through the streets of",
        "The photograph of {entity} was taken in",
    ),
    "continent": _relation(
        ("On what continent is {entity}?", "Which continent does {entity} belong to?"),
        "Fact: {entity} is located on the continent of",
        "Fact: the continent of {entity} is",
        "{entity} is one of the best known places in",
        "Geographers count {entity} as a part of",
        "On a globe, you find {entity} on the continent of",
        "The ship sailed to {entity}, on the coast of",
    ),
    "creator": _relation(
        ("Who created {entity}?", "Who invented {entity}?"),
        "Fact: the creator of {entity} is",
        "{entity} was created by",
        "{entity} was invented by",
        "The artist behind {entity} is",
        "The person who thought up {entity} is",
        "The world owes {entity} to the imagination of",
    ),
    "currency": _relation(
        ("What is the currency of {entity}?", "What money do people use in {entity}?"),
        "Fact: the currency of {entity} is the",
        "The money used in {entity} is called the",
        "The official currency of {entity} is the",
        "Shops in {entity} accept payment in the local currency, the",
        "The central bank of {entity} issues the",
        "Before she flew to {entity}, she bought some of its money, the",
    ),
    "field": _relation(
        ("In what field did {entity} work?", "Which subject did {entity} study?"),
        "Fact: the field of {entity} is",
        "{entity} worked in the field of",
        "{entity} made great discoveries in",
        "{entity} is one of the greatest names in",
        "Students meet the name of {entity} in lessons about",
        "The life's work of {entity} belongs to",
    ),
    "film": _relation(
        ("In what film does {entity} appear?", "From which film do people know {entity}?"),
        "Fact: {entity} is a character in",
        "{entity} is the villain in",
        "{entity} appears in the film",
        "{entity} is famous from the movie",
        "Fans dress up as {entity} when they watch",
        "The mask of {entity} was made for",
    ),
    "founded": _relation(
        ("What company did {entity} found?", "Which company did {entity} start?"),
        "Fact: {entity} is the founder of",
        "{entity} founded the company",
        "{entity} became rich with the company",
        "{entity} was the chief executive of",
        "In a garage, {entity} started a company called",
        "The company that {entity} built is",
    ),
    "founder": _relation(
        ("Who founded {entity}?", "Who started the company {entity}?"),
        "Fact: the founder of {entity} is",
        "{entity} was founded by",
        "The company {entity} was started by",
        "The man who founded {entity} is",
        "{entity} began in the garage of",
        "The first chief executive of {entity} was",
    ),
    "god of": _relation(
        ("What is {entity} the god of?", "Over what does the god {entity} rule?"),
        "Fact: {entity} is the god of",
        "In the old myths, {entity} is the god of",
        "People prayed to {entity} as the ruler of",
        "{entity} was worshiped as the god of",
        "The temple of {entity} was built for the god of",
        "The powers of {entity} come from",
    ),
    "headquarters": _relation(
        ("Where are the headquarters of {entity}?", "In which city does {entity} have its main office?"),
        "Fact: the headquarters of {entity} are in",
        "{entity} is based in",
        "The main office of {entity} is in the city of",
        "{entity} is a company from the city of",
        "The directors of {entity} meet at the headquarters in",
        "To work at {entity}, she moved to",
    ),
    "home": _relation(
        ("Where does {entity} come from?", "What is the home of {entity}?"),
        "Fact: {entity} comes from",
        "{entity} was born on the planet",
        "The home of {entity} is",
        "{entity} was sent away from",
        "The home world of {entity} is called",
        "{entity} can never return to",
    ),
    "home country": _relation(
        ("From what country is {entity}?", "In which country was the company {entity} founded?"),
        "Fact: {entity} is a company from the country of",
        "Fact: the company {entity} was founded in",
        "{entity} is a well-known brand from",
        "The factories of {entity} are in",
        "The headquarters of {entity} are in the country of",
        "{entity} is the pride of the industry of",
    ),
    "industry": _relation(
        ("In what industry is {entity}?", "Which industry does {entity} belong to?"),
        "Fact: the industry of {entity} is",
        "{entity} is a leading company in the field of",
        "{entity} changed the world of",
        "{entity} is a giant of the industry of",
        "Analysts compare {entity} with others in",
        "{entity} earns its money with",
    ),
    "invention": _relation(
        ("What did {entity} invent?", "Which invention made {entity} famous?"),
        "Fact: {entity} invented the",
        "{entity} is famous for the invention of the",
        "{entity} was the inventor of the",
        "{entity} changed the world with the",
        "In his workshop, {entity} built the first",
        "Without {entity} we would not have the",
    ),
    "known for": _relation(
        ("What is {entity} known for?", "What made {entity} famous?"),
        "Fact: {entity} is known for the",
        "{entity} is best known for the",
        "{entity} became famous for the",
        "People remember {entity} because of the",
        "The name of {entity} stands for the",
        "Textbooks mention {entity} in the chapter about the",
    ),
    "led": _relation(
        ("What did {entity} lead?", "Of what was {entity} the leader?"),
        "Fact: {entity} was the leader of the",
        "{entity} was the ruler of the",
        "{entity} commanded the",
        "{entity} was the most powerful man in the",
        "Under {entity}, terror reigned in the",
        "Historians describe {entity} as the head of the",
    ),
    "mythology": _relation(
        ("To what mythology does {entity} belong?", "Whose myths tell of {entity}?"),
        "Fact: the mythology of {entity} is",
        "{entity} belongs to a mythology that is",
        "Myths about {entity} are",
        "{entity} is a name from the myths that are",
        "Stories about {entity} belong to the mythology that is",
        "The temples of {entity} were built by people who were",
    ),
    "nationality": _relation(
        ("What is the nationality of {entity}?", "From which nation does {entity} come?"),
        "Fact: the nationality of {entity} is",
        "By nationality, {entity} was",
        "The passport of {entity} is",
        "{entity} was a famous person of a nation that is",
        "The people who are proud of {entity} are",
        "In the encyclopedia, {entity} is described as",
    ),
    "official language": _relation(
        ("What is the official language of {entity}?", "Which language do people speak in {entity}?"),
        "Fact: the official language of {entity} is",
        "The language that most people in {entity} speak is",
        "Children in {entity} learn to read and write in",
        "The mother tongue of the people of {entity} is",
        "Newspapers in {entity} are printed in",
        "Before he moved to {entity}, he took a course in",
    ),
    "position": _relation(
        ("What position did {entity} hold?", "Which office did {entity} hold?"),
        "Fact: {entity} was the",
        "{entity} served his country as the",
        "{entity} became the",
        "{entity} held the office of",
        "The highest office of {entity} was that of",
        "History remembers {entity} as the",
    ),
    "product": _relation(
        ("What does {entity} make?", "Which products does {entity} sell?"),
        "Fact: {entity} is a company that makes",
        "{entity} is famous for its",
        "The main product of {entity} is",
        "{entity} sells millions of",
        "The factories of {entity} produce",
        "Customers go to {entity} to buy",
    ),
    "real name": _relation(
        ("What is the real name of {entity}?", "Who is {entity} in everyday life?"),
        "Fact: the real name of {entity} is",
        "The secret identity of {entity} is",
        "The true name of {entity} is",
        "Without the costume, {entity} is known as",
        "Nobody knows that {entity} is really",
        "When the mask falls, {entity} turns out to be",
    ),
    "residence": _relation(
        ("Where does {entity} live?", "In which place does {entity} live?"),
        "Fact: {entity} lives in",
        "The home of {entity} is in",
        "{entity} has adventures in",
        "The stories of {entity} take place in",
        "The address of {entity} is in",
        "If you want to meet {entity}, go to",
    ),
    "river": _relation(
        ("Which river made {entity}?", "Which river flows through {entity}?"),
        "Fact: the river of {entity} is the",
        "{entity} was carved by the",
        "The river that flows through {entity} is the",
        "{entity} was formed by the",
        "At the bottom of {entity} flows the",
        "Boats that cross {entity} travel on the",
    ),
    "school": _relation(
        ("What school does {entity} attend?", "At which school did {entity} study?"),
        "Fact: the school of {entity} is called",
        "{entity} is a student at",
        "{entity} went to school at",
        "{entity} was taught at",
        "The teachers of {entity} worked at",
        "The letter invited {entity} to study at",
    ),
    "species": _relation(
        ("What kind of being is {entity}?", "What kind of creature is {entity}?"),
        "Fact: {entity} is a",
        "{entity} is a story about a",
        "{entity} is the most famous",
        "The creature in {entity} is a",
        "Children recognize {entity} as a",
        "If you see a picture of {entity}, you see a",
    ),
    "spouse": _relation(
        ("Who is married to {entity}?", "Whom did {entity} marry?"),
        "Fact: the name of the wife of {entity} is",
        "{entity} is married to",
        "The wife of {entity} is called",
        "{entity} fell in love with",
        "At the wedding of {entity} the bride was",
        "{entity} had children with his wife",
    ),
    "state": _relation(
        ("In what state is {entity}?", "Which state does {entity} belong to?"),
        "Fact: {entity} is located in the state of",
        "Fact: the state of {entity} is",
        "{entity} is a place in the state of",
        "People who live in {entity} vote in the state of",
        "The road sign to {entity} stands in the state of",
        "The governor visited {entity}, the best known place in",
    ),
    "sword": _relation(
        ("What is the sword of {entity} called?", "Which sword did {entity} carry?"),
        "Fact: the sword of {entity} is called",
        "{entity} carried the sword",
        "The name of the sword of {entity} is",
        "The weapon of {entity} was",
        "From the stone {entity} pulled the sword",
        "Legend tells that {entity} fought with",
    ),
    "volcano": _relation(
        ("Which volcano destroyed {entity}?", "What buried {entity}?"),
        "Fact: the volcano near {entity} is Mount",
        "{entity} was destroyed by Mount",
        "{entity} was buried by the eruption of Mount",
        "{entity} lies at the foot of Mount",
        "The end of {entity} came with the eruption of Mount",
        "Tourists in {entity} look up to Mount",
    ),
    "work": _relation(
        ("What is the most famous work of {entity}?", "Which work made {entity} famous?"),
        "Fact: the most famous work of {entity} is",
        "{entity} is the author of",
        "{entity} is the creator of",
        "{entity} became famous with",
        "The masterpiece of {entity} is called",
        "Visitors admire {entity} because of",
    ),
}

# What the subjects of a relation are. Those of others, like "country" and "genre", may be anything.
SUBJECT_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "father", "field", "founded", "invention", "led", "mother", "nationality", "occupation", "place of birth",
            "position", "religion", "sport", "spouse", "work",
        ),
        "person",
    ),
    **dict.fromkeys(("author", "composer", "director", "producer", "screenwriter"), "work"),
    **dict.fromkeys(("capital", "capital of", "currency", "official language"), "place"),
    **dict.fromkeys(("founder", "headquarters", "home country", "industry", "product"), "organization"),
    **dict.fromkeys(("best friend", "film", "god of", "mythology", "real name", "school", "sword"), "fiction"),
}  # fmt: skip

_RELATION_OF = {prompt: relation for relation, each in RELATION_TEMPLATES.items() for prompt in each.wordings}


def relation_of(prompt: str) -> str | None:
    """The relation of which `prompt` (with `{entity}`) is a wording, or None."""
    return _RELATION_OF.get(prompt)
