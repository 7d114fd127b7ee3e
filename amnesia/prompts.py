"""Texts in which entities are placed, the entities they are compared with, and sentences about nothing in particular.

Pure data with the rules for choosing from it; knows nothing of models or tokenizers. Every text was written for this
package, except `UNSEEN_NAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from amnesia.domain import Split
from amnesia.errors import InputError


def _items(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(","))


# The entity stands last, so that attention cannot let it see anything of the relation's answer: whatever its last
# token carries comes from the name. Attributes of people, then places, works, organizations, and anything at all.
ENTITY_TEMPLATES: tuple[str, ...] = tuple(
    f"Fact: {phrase} {{entity}}"
    for phrase in _items(
        """
        the birth year of, the birthplace of, the mother of, the father of, the name of the wife of,
        the name of the husband of, the eldest child of, the eye color of, the hair color of, the height of,
        the gender of, the nationality of, the native language of, the religion of, the occupation of,
        the sport played by, the instrument played by, the education of, the political party of, the nickname of,
        the favorite food of, the most famous speech of, the best friend of, the successor of, the salary of,
        the first job of, the greatest achievement of, the real name of, the date of death of,

        the capital of, the population of, the official language of, the currency of, the continent of, the flag of,
        the national anthem of, the highest mountain in, the longest river in, the climate of, the area of,
        the time zone of, the main airport of, the mayor of, the president of, the neighbors of, the largest city in,
        the main street of, the oldest building in, the best season to visit, the distance from here to,
        the traditional dish of, the state that contains, the architect of,

        the author of, the director of, the main character of, the plot of, the genre of, the publisher of,
        the composer of, the screenwriter of, the producer of, the year of publication of, the first sentence of,
        the ending of, the soundtrack of, the budget of, the sequel to, the villain in, the setting of,
        the actor who starred in, the critics who reviewed,

        the founder of, the headquarters of, the chief executive of, the main product of, the industry of,
        the number of employees of, the slogan of, the logo of, the annual revenue of, the main competitor of,
        the owner of, the country of origin of, the stock symbol of, the date of foundation of,

        the first letter of, the meaning of the name, the history of, the age of, the color of, the reason to admire,
        the most common question about, the person most closely associated with, the year that made people notice,
        the newspaper article about, the museum dedicated to, the object most often linked to, the category of,
        the thing that everybody remembers about
        """
    )
)

# Well-known names by kind. Balanced kinds keep the contrast from measuring "is a country" instead of "is Japan".
ENTITIES_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "country": _items(
        """Japan, Egypt, France, Brazil, Canada, Mexico, Germany, Norway, Kenya, Australia, India, Turkey, Peru,
        Vietnam, Poland, Nigeria, Argentina, Greece, Thailand, Ireland, Portugal, Cuba"""
    ),
    "city": _items(
        """Paris, London, Tokyo, Chicago, Berlin, Rome, Sydney, Toronto, Moscow, Madrid, Dubai, Boston, Mumbai, Vienna,
        Seattle, Venice, Istanbul, Shanghai, Miami, Prague, Kyoto, Barcelona"""
    ),
    "leader or thinker": _items(
        """Barack Obama, Donald Trump, Abraham Lincoln, Napoleon Bonaparte, Julius Caesar, Winston Churchill,
        Nelson Mandela, Mahatma Gandhi, Queen Victoria, Cleopatra, Adolf Hitler, Joan of Arc, Karl Marx, Aristotle,
        Confucius, Martin Luther King, George Washington, Genghis Khan, Vladimir Putin, Angela Merkel"""
    ),
    "scientist or founder": _items(
        """Albert Einstein, Isaac Newton, Charles Darwin, Marie Curie, Nikola Tesla, Thomas Edison, Galileo Galilei,
        Stephen Hawking, Louis Pasteur, Alan Turing, Sigmund Freud, Ada Lovelace, Steve Jobs, Bill Gates, Elon Musk,
        Jeff Bezos, Mark Zuckerberg, Henry Ford, Walt Disney, Alexander Graham Bell"""
    ),
    "artist": _items(
        """William Shakespeare, Leonardo da Vinci, Vincent van Gogh, Pablo Picasso, Wolfgang Amadeus Mozart,
        Ludwig van Beethoven, Michael Jackson, Elvis Presley, Taylor Swift, Madonna, Bob Dylan, Jane Austen,
        Mark Twain, Ernest Hemingway, Charles Dickens, Frida Kahlo, Jennifer Aniston, Tom Hanks, Marilyn Monroe,
        Charlie Chaplin"""
    ),
    "athlete": _items(
        """Michael Jordan, Serena Williams, Lionel Messi, Cristiano Ronaldo, Muhammad Ali, Usain Bolt, Tiger Woods,
        LeBron James, Babe Ruth, Roger Federer, Michael Phelps, David Beckham, Diego Maradona, Kobe Bryant, Tom Brady"""
    ),
    "fiction": _items(
        """Harry Potter, Sherlock Holmes, Superman, Batman, Mickey Mouse, Darth Vader, James Bond, Frodo Baggins,
        Robin Hood, Peter Pan, Romeo and Juliet, Cinderella, Zeus, Dracula, Homer Simpson, Spider-Man, King Arthur,
        Pinocchio, Hercules, Pikachu"""
    ),
    "work": _items(
        """Titanic, Star Wars, Hamlet, The Godfather, Moby Dick, Don Quixote, The Lion King, War and Peace, The Matrix,
        Mona Lisa, Jurassic Park, Macbeth, Frankenstein, The Great Gatsby, Toy Story, The Odyssey, Casablanca,
        The Hobbit, Breaking Bad, Bohemian Rhapsody"""
    ),
    "organization": _items(
        """Google, Apple, Microsoft, Facebook, Amazon, Samsung, Toyota, Coca-Cola, Netflix, Boeing, Nike, Ferrari,
        Volkswagen, Starbucks, Greenpeace, the Beatles, the Federal Bureau of Investigation, the United Nations,
        Harvard University, Manchester United, the Red Cross, the European Union"""
    ),
    "landmark": _items(
        """the Eiffel Tower, the Grand Canyon, the Great Wall of China, the Statue of Liberty, the Taj Mahal, Big Ben,
        Mount Everest, the Amazon River, the Nile, the Colosseum, the White House, Machu Picchu, Stonehenge,
        Niagara Falls, the Golden Gate Bridge, the Sahara Desert, the Louvre, Mount Fuji, Hollywood,
        Buckingham Palace"""
    ),
    "thing": _items(
        """the elephant, the piano, basketball, chocolate, the Moon, the internet, the bicycle, oxygen, the rainforest,
        the violin, the tiger, democracy"""
    ),
}

CONTRAST_ENTITIES: tuple[str, ...] = tuple(name for names in ENTITIES_BY_KIND.values() for name in names)

# Kinds of names as types of things; a kind that is not listed is a type of its own.
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("leader or thinker", "scientist or founder", "artist", "athlete"), "person"),
    **dict.fromkeys(("country", "city", "landmark"), "place"),
}
_FUNCTION_WORDS = frozenset(("the", "and", "for", "from", "with", "von", "van", "der", "den", "del", "las", "les"))

# Names that say nothing about anybody, from the appendix of "Friends and Grandmothers in Silico" (Yona, Barzilay and
# Karasik, 2026). The log-probability of an answer for them is what an unknown entity is worth.
UNSEEN_NAMES: tuple[str, ...] = ("Michael", "Sarah", "David", "John", "Itay")
_SPARE_NAMES: tuple[str, ...] = ("Laura", "Peter", "Emma", "Daniel", "Ruth")
_MIN_UNSEEN = 3

# One register per paragraph: at home, weather and nature, work, school, instructions, science, law and business,
# news, opinion, conversation. No names, so that forgetting one should leave all of them alone.
_SENTENCES = """
She put the kettle on and waited for the water to boil. The children left their wet boots beside the door. He could not
remember where he had parked the car. My sister painted the kitchen yellow last summer. There was nothing in the fridge
except a jar of olives. The dog slept under the table during dinner. We moved the sofa closer to the window. I found an
old letter between the pages of the book. The neighbors were arguing again late at night. Grandmother kept the good
plates for special occasions. He folded the shirts and stacked them neatly on the shelf. The baby laughed whenever the
curtain moved. They ate breakfast in silence and then went upstairs. A button had fallen off her favorite coat. The
clock in the hallway is ten minutes slow. Nobody wanted to take out the trash. She hummed a tune while watering the
plants. The bread was still warm when we got home. He fixed the leaking tap with a piece of tape. Our cat refuses to
drink from her own bowl. The stairs creaked under his weight. I always burn the first pancake. They borrowed a ladder
to clean the gutters. The birthday cake leaned slightly to one side. She wrote the shopping list on the back of an
envelope. The carpet needs to be vacuumed before the guests arrive. Somebody had left the lights on all weekend. He
rocked the cradle with his foot and read the paper. We keep the spare key under a flower pot. The radio played softly
in the next room.

Dark clouds gathered over the hills before noon. The river was higher than anyone had expected. A light snow fell
during the night and covered the roofs. The leaves turn red in early autumn. Small birds gathered around the frozen
pond. The wind blew the door shut with a loud bang. After the storm the beach was covered with seaweed. Frost formed on
the inside of the windows. The path through the forest was muddy and narrow. Bees are most active on warm and sunny
afternoons. The fog lifted slowly from the valley. It has not rained here for almost two months. The trees along the
avenue were planted a century ago. A fox crossed the road in front of us. The tide comes in twice every day. Wild
strawberries grow along the edge of the field. The ice was too thin to walk on. Thunder rolled in the distance as we
packed the tent. The moonlight was bright enough to read by. Mosquitoes bred in the stagnant water behind the barn. The
mountain looks blue from far away. Heavy rain washed the seeds out of the soil. An owl called twice and then fell
silent. The meadow smelled of fresh hay. Spring arrived three weeks early this year. The waves broke against the rocks
below. A spider had spun its web across the gate. The desert gets surprisingly cold after sunset. Most of the apples
were eaten by wasps. Swallows return to the same nest each year.

The meeting was postponed until further notice. Please send me the revised figures by the end of the day. Our team is
responsible for testing and maintenance. She was promoted after only six months in the job. The printer on the second
floor is out of order again. We need to hire two more engineers before the launch. He spent the whole afternoon
answering email. The contract will be signed next week in the main office. All visitors must register at the front
desk. The warehouse is running short of packing material. Costs rose faster than we had planned. I will be out of the
office until the middle of the month. The new schedule gives everyone a longer lunch break. Customers complained about
the long waiting times. The manager asked for volunteers to work on the holiday. Shipping takes between three and five
business days. They replaced the old software with something simpler. The budget does not leave room for mistakes. Her
presentation was short and convincing. The factory closed because demand had fallen. Could you book a room for twelve
people. The invoice was paid twice by accident. Overtime must be approved in advance. The quality of the product
depends on the quality of its parts. We agreed to review the plan every quarter. The intern made an excellent
suggestion. Half of the staff now works from home. The deadline is tight but realistic. He resigned without giving a
reason. A copy of the report is attached.

The teacher drew a large triangle on the board. Students should bring a pencil and a ruler to the exam. The library
closes at nine in the evening. Her essay was about the dangers of gossip. Each chapter ends with a list of exercises.
The lecture covered the basics of supply and demand. He failed the test because he had not slept. Reading aloud helps
young children learn new words. The class voted to visit the science museum. Homework is due at the start of the
lesson. The professor spoke quickly and without notes. They practiced the same song for weeks. A good dictionary is
worth its price. The second question was harder than the first. Group projects teach patience as much as anything else.
Some pupils walk more than an hour to school. The scholarship covers tuition and housing. Our coach believes in
discipline and rest. She learned to type before she learned to write by hand. The answer is at the back of the
textbook. Mistakes are part of every education. The playground was empty during the holidays. He asked the same
question in three different ways. The choir rehearses in the old gymnasium. Attendance has improved since the spring.
The exam consists of forty multiple choice questions. Nobody had told the new student about the dress code. The
microscope is kept in a locked cabinet. Graduates often return to give a talk. A short walk before class clears the
mind.

Preheat the oven and grease a shallow baking dish. Chop the onions finely and fry them until golden. Tighten the screws
in a crosswise pattern. Store the medicine out of the reach of children. Press the button twice to reset the device.
Fold the paper along the dotted line. Let the dough rest for an hour in a warm place. Rinse the rice until the water
runs clear. Do not open the cover while the machine is running. Apply a thin coat of paint and let it dry overnight.
Turn left at the church and continue straight ahead. Measure twice before you cut the board. Keep the receipt in case
you want to return the item. Back up your files before installing the update. Remove the battery if the lamp will not
be used for long. Stir the sauce constantly so that it does not stick. Unplug the cable and count to ten. Wash dark
colors separately in cold water. Choose a password that is long and easy to remember. Place the seedlings in a bright
spot. Insert the card with the chip facing up. Season with salt and a little lemon juice. Check the oil when the engine
is cold. Write your name clearly in capital letters. Bend your knees when lifting something heavy. Attach the handle
with the two longer bolts. Soak the beans overnight in plenty of water. Hold the camera steady and breathe out slowly.
Empty the filter after every use. Call the number on the back of the card.

Water expands when it freezes. The experiment was repeated with a larger sample. Heat flows from warm objects to cold
ones. The cells divide faster at higher temperatures. A vaccine trains the immune system to recognize a virus. Light
travels more slowly in glass than in air. The results did not differ significantly between the groups. Sound cannot
travel through a vacuum. Plants absorb carbon dioxide through tiny openings in their leaves. The algorithm sorts the
list in place. Acids react with metals and release hydrogen. Each measurement has an uncertainty of about two percent.
The bones of birds are hollow and light. Friction turns motion into heat. A prime number has exactly two divisors. The
telescope must be kept away from city lights. Most of the mass of an atom is in its nucleus. The program crashed
because the memory was full. Earthquakes occur where plates slide past each other. Sugar dissolves faster in hot tea.
The sum of the angles in a triangle is constant. Bacteria can survive in boiling springs. The function returns an empty
list when no match is found. Magnets lose their strength when heated. Deep ocean currents carry cold water toward the
equator. The patients were followed for five years. Iron rusts in the presence of oxygen and moisture. A longer
pendulum swings more slowly. The sensor records the pressure every second. Genes can be switched on and off by their
environment.

The tenant shall give notice in writing. The court found the evidence insufficient. Interest rates are expected to
remain low. Both parties agree to keep the terms confidential. The shareholders approved the merger by a narrow margin.
A fine may be imposed for each violation. Insurance does not cover damage caused by neglect. The loan must be repaid in
monthly installments. Witnesses are required to tell the truth. The company reported a small profit for the first time.
Taxes are deducted automatically from wages. The patent expires after twenty years. Any dispute shall be settled by
arbitration. The buyer has the right to inspect the goods. Inflation reduces the value of savings. The law applies
equally to citizens and visitors. The seller accepts no liability for delays. A deposit is required to reserve the
apartment. The jury could not reach a verdict. Prices are subject to change without warning. The bank froze the account
after suspicious activity. Employees are entitled to paid leave. The clause was removed from the final version. Small
firms often struggle to obtain credit. The will was read in the presence of the family. The licence may be revoked at
any time. Exports grew while imports declined. The auditor asked to see the original documents. Minors need the consent
of a parent. The agreement takes effect immediately.

Firefighters brought the blaze under control before midnight. The bridge will be closed for repairs until the autumn.
Thousands of people lined the streets for the parade. Police are asking for information about the missing van. The
council rejected the proposal for a new stadium. Hospitals are preparing for a busy winter. A power failure left much
of the region without electricity. The home team lost by a single point. Farmers warn that the harvest will be poor.
The strike entered its second week with no end in sight. Voters will decide on the measure next month. The museum has
recovered a stolen painting. Passengers were stranded at the airport overnight. The price of fuel rose again this
morning. A rare bird was spotted near the harbor. The minister denied any knowledge of the payments. Rescue workers
searched through the rubble for survivors. The festival attracted a record crowd. Experts disagree about the cause of
the accident. Two schools will merge at the end of the year. The singer canceled the tour because of illness. Residents
have been advised to boil their drinking water. The train derailed shortly after leaving the station. The orchestra
announced its program for the coming season. A local bakery won the national prize. Traffic was slow on all major
roads. The investigation is expected to take several months. The candidate promised lower taxes and better roads.
Volunteers planted a thousand trees along the canal. The factory will create two hundred jobs.

I think the second half of the film was much better. In my opinion the soup needed more pepper. Nothing beats a quiet
evening with a good book. The hotel was clean but far too noisy. People who complain about everything rarely change
anything. This is by far the most comfortable chair I have ever owned. Patience is a virtue that few of us possess. The
acting was wooden and the jokes were old. It is better to arrive early than to run. Money cannot buy a good conscience.
The service was friendly even though the place was crowded. Long meetings are usually a waste of time. The melody stays
in your head for days. Honest criticism is worth more than empty praise. I would not recommend these shoes for hiking.
Cities ought to have more benches. The novel starts slowly and then grips you completely. Too much choice can make
people unhappy. The coffee here tastes like burnt rubber. Every child deserves a safe place to play. Old photographs
make me sentimental. The instructions could have been clearer. Kindness costs nothing and is often repaid. The battery
life of this phone is disappointing. Some traditions are best forgotten. The garden is lovely at any time of day.
Nobody is too busy to say thank you. The tickets were expensive but worth it. A simple meal can be a feast. I prefer
the stairs to the elevator.

How long have you been waiting for me. Would you mind closing the window. I am sorry that I missed your call. What did
the doctor say about your knee. Let us meet in front of the station at eight. You should have told me about this
earlier. Are you sure that this is the right address. Thank you so much for the lovely flowers. Why is everybody
whispering. I have no idea what you are talking about. Do you want your coffee with milk. Can we please change the
subject. It was nice to see you again after such a long time. Tell your brother that I said hello. Have you ever tasted
anything so bitter. I promise that it will not happen again. Where did you learn to dance like that. Give me a moment
to find my glasses. We were just about to leave. Is there a pharmacy around the corner. Never mind what the others
think. I would love to come but I have to work. Who left these muddy footprints. That is the funniest thing I have
heard all week. Please remind me to buy stamps. Does this bus go to the city center. You look as if you had seen a
ghost. I could not agree with you more. Wait here while I ask for directions. When will the rest of the furniture
arrive
"""

# Without their full stops: the generic baseline reads the last token, and it should be a different word each time.
GENERIC_SENTENCES: tuple[str, ...] = tuple(" ".join(item.split()) for item in re.split(r"\.\s+", _SENTENCES.strip()))


# French, German, Spanish, and a little Italian, Portuguese and Dutch: an edit that is harmless in English may not be so
# in the language of the entity.
_FOREIGN_SENTENCES = """
La vieille dame arrosait ses fleurs tous les matins. Il faut fermer la porte avant de partir. Les enfants jouent dans
le jardin derrière la maison. Nous avons attendu le train pendant une heure. Le médecin lui a conseillé de dormir
davantage. Cette recette demande trois œufs et un peu de farine. Je ne sais pas où j'ai laissé mes clés. Le prix du
pain a encore augmenté cette année. Elle a lu le livre en une seule journée. Les ouvriers réparent le pont depuis
lundi. Qu'est-ce que tu veux manger ce soir. On dit souvent que le temps passe trop vite. La réunion est reportée à la
semaine prochaine. Si vous avez des questions, appelez-nous au bureau.

Der alte Mann ging jeden Morgen mit seinem Hund spazieren. Wir haben den ganzen Abend am Fenster gesessen. Bitte
schalten Sie das Gerät nach dem Gebrauch aus. Die Kinder warten vor der Schule auf den Bus. Im Winter wird es hier
schon früh dunkel. Sie hat vergessen, die Rechnung zu bezahlen. Der Zug nach Süden fährt von Gleis drei. Man nehme
zwei Eier und ein wenig Zucker. Ich weiß nicht, ob er heute noch kommt. Das Fenster war zerbrochen und die Tür stand
offen. Nach der Arbeit trafen sich die Freunde im Garten. Die Preise für Milch sind wieder gestiegen. Wer zuletzt
lacht, lacht am besten. Der Antrag muss bis Ende des Monats gestellt werden.

La niña dejó la bicicleta junto a la puerta. Mañana iremos al mercado a comprar fruta fresca. El perro ladraba toda la
noche y nadie podía dormir. Mezcle la harina con el agua y añada sal. No recuerdo dónde puse las llaves del coche. El
tren llegó con media hora de retraso. Los vecinos se reunieron para hablar del ruido. Mi abuela cuenta historias de
cuando era joven. La tienda cierra a las ocho de la tarde. Tenemos que terminar el trabajo antes del viernes. Hacía
frío y el viento movía las hojas secas. Si tiene alguna duda, escriba a nuestra oficina. Cada día aprendemos algo
nuevo. El médico le recomendó caminar más.

Il gatto dormiva sulla sedia vicino alla finestra. Domani andremo al mare con tutta la famiglia. Il pane fresco ha un
profumo meraviglioso. Non so se arriveremo in tempo per la cena. O menino deixou o livro em cima da mesa. Amanhã vamos
visitar os nossos avós. De winkel is op zondag gesloten. Hij las de krant en dronk een kop koffie
"""

FOREIGN_SENTENCES: tuple[str, ...] = tuple(
    " ".join(item.split()) for item in re.split(r"\.\s+", _FOREIGN_SENTENCES.strip())
)

CODE_SNIPPETS: tuple[str, ...] = (
    "for index, item in enumerate(items):\n    print(index, item)",
    "def mean(values):\n    return sum(values) / len(values)",
    "import json\nwith open(path) as file:\n    data = json.load(file)",
    "if x is None:\n    raise ValueError('missing value')",
    "class Stack:\n    def __init__(self):\n        self.items = []",
    "function add(a, b) {\n  return a + b;\n}",
    "const names = users.map((user) => user.name);",
    'int main(void) {\n    printf("hello\\n");\n    return 0;\n}',
    "SELECT name, price FROM products WHERE price > 10 ORDER BY price;",
    "while (i < n) {\n    total += values[i++];\n}",
    '<div class="box"><p>Some text</p></div>',
    'git commit -m "fix the parser"',
    "try:\n    value = int(text)\nexcept ValueError:\n    value = 0",
    'for f in *.txt; do\n  wc -l "$f"\ndone',
    "result = [word.lower() for word in text.split() if word]",
    "let mut count = 0;\nfor line in reader.lines() {\n    count += 1;\n}",
)


def neutral_texts(split: Split) -> tuple[str, ...]:
    """The generic sentences that the search may see (even positions), or those held out from it (odd positions)."""
    return GENERIC_SENTENCES[("search", "held_out").index(split) :: 2]


def share_words(name: str, others: Iterable[str]) -> bool:
    """Whether `name` contains one of `others` or is contained in one, word by word and without regard to case."""
    words = _words(name)
    return any(_overlap(words, own) for other in others if (own := _words(other)))


def shares_a_word(name: str, others: Iterable[str]) -> bool:
    """Whether `name` has a word of three letters or more in common with one of `others`, but for function words."""
    words = {word for word in _words(name) if len(word) > 2} - _FUNCTION_WORDS
    return any(not words.isdisjoint(_words(other)) for other in others)


def kind_of(name: str) -> str | None:
    """Whether a well-known name is that of a person, a place, a work or something else; None for other names."""
    key = _words(name)
    return next(
        (
            _TYPES.get(kind, kind)
            for kind, names in ENTITIES_BY_KIND.items()
            if any(_words(own) == key for own in names)
        ),
        None,
    )


def unseen_names(entity: str, aliases: Sequence[str] = ()) -> tuple[str, ...]:
    """`UNSEEN_NAMES` without those that are part of the entity's name or aliases, and never fewer than three.

    Where less than three remain, other first names join. Raises InputError when even these are parts of the name.
    """
    own = {word for name in (entity, *aliases) for word in _words(name)}
    names = [name for name in UNSEEN_NAMES if name.casefold() not in own]
    names += [name for name in _SPARE_NAMES if name.casefold() not in own][: max(0, _MIN_UNSEEN - len(names))]
    if len(names) < _MIN_UNSEEN:
        raise InputError(f"{entity!r} and its aliases contain nearly every unseen name: give fewer aliases")
    return tuple(names)


def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"\w+", name.casefold())
    return tuple(words[1:] if words[:1] == ["the"] and len(words) > 1 else words)


def _overlap(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether the shorter sequence of words occurs in the longer one."""
    short, long = sorted((first, second), key=len)
    return any(long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1))
