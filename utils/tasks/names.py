"""English first names by gender, shared by the tasks whose prompts name people.

After a space, every name is one token of the Pythia tokenizer. Names that both genders use are left out.
"""

MALE_NAMES: tuple[str, ...] = (
    *("James", "John", "Robert", "Michael", "William", "David", "Richard", "Joseph", "Thomas", "Charles"),
    *("Christopher", "Daniel", "Matthew", "Anthony", "Mark", "Paul", "Steven", "Andrew", "Kenneth", "Joshua"),
    *("Kevin", "Brian", "George", "Timothy", "Edward", "Jason", "Jeffrey", "Ryan", "Jacob", "Nicholas"),
    *("Eric", "Jonathan", "Stephen", "Scott", "Benjamin", "Samuel", "Gregory", "Alexander", "Patrick", "Frank"),
    *("Jack", "Peter", "Adam", "Henry", "Nathan", "Douglas", "Kyle", "Walter", "Jeremy", "Keith"),
    *("Roger", "Simon", "Arthur", "Sean", "Justin", "Brandon", "Aaron", "Tyler", "Philip", "Oliver"),
)

FEMALE_NAMES: tuple[str, ...] = (
    *("Mary", "Patricia", "Jennifer", "Linda", "Elizabeth", "Barbara", "Susan", "Jessica", "Sarah", "Karen"),
    *("Lisa", "Nancy", "Betty", "Sandra", "Margaret", "Ashley", "Emily", "Donna", "Michelle", "Carol"),
    *("Amanda", "Melissa", "Deborah", "Stephanie", "Rebecca", "Laura", "Helen", "Sharon", "Kathleen", "Amy"),
    *("Angela", "Anna", "Ruth", "Nicole", "Katherine", "Catherine", "Christine", "Janet", "Rachel", "Emma"),
    *("Maria", "Heather", "Diane", "Julie", "Victoria", "Christina", "Lauren", "Olivia", "Martha", "Alice"),
    *("Julia", "Marie", "Jane", "Megan", "Sara", "Katie", "Erin", "Claire", "Lucy", "Hannah"),
)
