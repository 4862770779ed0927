//! What is asked and what is right: one small grammar a task.

use serde_json::json;

use super::{Text, dice::Dice};

const POLICY: &str = "You work for Northwind Instruments, a maker of laboratory equipment. Follow company policy 7.2: be accurate, do not invent facts, and never \
                      mention competitors by name.";

const QUEUES: [&str; 8] = ["billing", "delivery", "returns", "technical", "account", "warranty", "sales", "complaint"];
const CLAUSES: [&str; 9] = [
    "termination",
    "liability",
    "confidentiality",
    "payment",
    "governing_law",
    "renewal",
    "assignment",
    "audit",
    "force_majeure",
];
const MOODS: [&str; 3] = ["positive", "neutral", "negative"];
const YES_NO: [&str; 2] = ["compliant", "violation"];
const TOOLS: [&str; 4] = ["create_return", "find_order", "find_stock", "send_message"];

pub(super) fn tickets(dice: &mut Dice) -> Text {
    let at = dice.below(8) as usize;
    let says: &[&str] = match at {
        0 => &[
            "[the invoice|our bill|the statement] for <order> [shows|lists|charges] <money> euros [twice|too much|without the agreed discount]",
            "[why were we|we have been] charged <money> for [shipping|service|installation] that we never ordered",
            "can you [send|reissue] the invoice with [our VAT number|another address|the purchase order on it]",
        ],
        1 => &[
            "[where is|we still wait for] [our parcel|the <thing>|order <order>], it should have [come|arrived] <since>",
            "the [courier|carrier|driver] left [the crate|our parcel] at [the wrong door|a neighbour|the wrong site] in <city>",
            "[tracking|the tracking page] of <order> has not [changed|moved] for <days> days",
        ],
        2 => &[
            "we want to [send back|return] the <thing>, it [does not fit our bench|is the wrong model|was ordered by mistake]",
            "how do I get a [return label|return number] for <order>",
            "please [collect|take back] <n> unopened boxes of <part>s from <order>",
        ],
        3 => &[
            "the <thing> shows error E<n> [after warm-up|when the lid closes|at every start] and [stops|beeps|reboots]",
            "[firmware|software] [4.<n>|update] [fails|hangs] on our <thing> at [12|40|99] percent",
            "readings of the <thing> drift by <n> percent [within an hour|overnight|since calibration]",
        ],
        4 => &[
            "I cannot [log in|sign in] to the [portal|customer area], the [reset mail|code] never [arrives|comes]",
            "please [remove|add] a [colleague|user] [from|to] our [account|portal access]",
            "our [company name|login domain] changed, how do we [move|rename] the account",
        ],
        5 => &[
            "is the <part> of our <thing> [covered|still under guarantee], we bought it <since>",
            "the <thing> broke after <n> months, we [ask for|claim] repair under [warranty|guarantee]",
            "your [technician|partner] says the guarantee [is void|ended], which we [dispute|do not understand]",
        ],
        6 => &[
            "please [quote|send an offer for] <n> <thing>s with [installation|training|a service plan]",
            "do you [offer|have] a [discount|framework contract] for [universities|hospitals] from <n> units",
            "which <thing> would you [recommend|suggest] for [viscous|volatile|turbid] samples, and at what price",
        ],
        _ => &[
            "[this is unacceptable|I am very disappointed]: [three people promised a call and nobody rang|your service has gone downhill since <date>]",
            "[your hotline|your colleague] was [rude|dismissive] [and hung up|to my staff], I want to [speak to a manager|complain formally]",
            "we will [leave|take our business elsewhere] if [nobody answers|this goes on], after <n> years as a customer",
        ],
    };
    let pattern = dice.one(says);
    let body = dice.letter(pattern);
    let system = format!(
        "{POLICY}\n\nRead the message of a customer and name the team that must handle it. Teams: billing, delivery, returns, technical, account, warranty, sales, complaint. Answer with the name of the team alone."
    );
    Text { others: &QUEUES, ..Text::new(&system, body, QUEUES[at].to_owned()) }
}

pub(super) fn reviews(dice: &mut Dice) -> Text {
    let at = dice.below(3) as usize;
    let says = match at {
        0 => {
            "[Works like a charm|Best <thing> we ever had|Quiet, exact and easy to clean|Set up in <n> minutes and never let us down], [would buy again|worth every cent|my team loves it|five stars]"
        }
        1 => {
            "[It does what it says|An average <thing>|Fine for the price|Arrived on time], [nothing more|neither good nor bad|the manual could be longer|we use it <n> times a week]"
        }
        _ => {
            "[Stopped working after <n> days|Far too loud|The <part> broke at once|Display unreadable], [never again|a waste of <money> euros|support did not help|we sent it back]"
        }
    };
    let body = dice.fill(says);
    let user = format!(
        "Review of a product:\n\"{body}\"\n\nIs the review positive, neutral or negative? Answer with one word."
    );
    Text { others: &MOODS, ..Text::new("", user, MOODS[at].to_owned()) }
}

pub(super) fn invoices(dice: &mut Dice) -> Text {
    let (firm, number, date, total) =
        (dice.slot("firm"), format!("INV-{}", 10_000 + dice.below(90_000)), dice.slot("date"), dice.slot("money"));
    let person = dice.fill("<first> <last>");
    let contact = dice.fill("[Questions to <mail>|Phone <phone>|Contact: <mail>, <phone>]");
    let iban = dice.slot("iban");
    let order = [
        format!(
            "{firm}\nInvoice {number} of {date}\nAttn. {person}\n{} x {} . . . . {total}\nTotal due EUR {total}\nPay to {iban}\n{contact}",
            1 + dice.below(9),
            dice.slot("thing")
        ),
        format!(
            "INVOICE\nNo. {number}\nDate: {date}\nSupplier: {firm}\nService: maintenance of {}\nAmount (incl. VAT): {total} EUR\nIBAN {iban}\n{contact}",
            dice.slot("thing")
        ),
        format!(
            "{contact}\nDear {person},\nfor {} we charge {total} EUR.\nOur reference {number}, {date}.\n{firm}\nBank: {iban}",
            dice.slot("part")
        ),
    ];
    let user = order[dice.below(3) as usize].clone();
    let answer = json!({"vendor": firm, "number": number, "date": date, "total": total}).to_string();
    let schema = json!({"type": "object", "required": ["vendor", "number", "date", "total"], "additionalProperties": false,
        "properties": {"vendor": {"type": "string"}, "number": {"type": "string"}, "date": {"type": "string"}, "total": {"type": "string"}}});
    Text {
        schema: Some(schema.to_string()),
        ..Text::new(
            "Extract vendor, number, date and total from the invoice below as they stand there. Return JSON.",
            user,
            answer,
        )
    }
}

pub(super) fn clauses(dice: &mut Dice) -> Text {
    let at = dice.below(9) as usize;
    let says = match at {
        0 => {
            "Either party may [terminate|end] this Agreement [upon|with] <n> days' [written|prior] notice[| if the other party is in material breach| for convenience]."
        }
        1 => {
            "[In no event shall|Under no circumstances will] [the Supplier|either party] be liable for [indirect|consequential] damages exceeding EUR <money>[|, except for gross negligence]."
        }
        2 => {
            "[The Recipient|Each party] shall [keep secret|not disclose] all [information|documents] received [from the other|hereunder] for <n> years[| after the end of this Agreement]."
        }
        3 => {
            "[Invoices|All amounts] [are due|shall be paid] within <n> days of [receipt|the invoice date]; late payment bears interest of <n> percent."
        }
        4 => {
            "This Agreement [is governed by|shall be construed under] the laws of [Austria|Portugal|England|Denmark|Italy], and the courts of <city> have jurisdiction."
        }
        5 => {
            "The term [renews|is extended] automatically for [one year|<n> months] unless [either party|the Customer] objects <n> days before its end."
        }
        6 => {
            "[Neither party may|The Supplier shall not] assign [its rights|this Agreement] without [the prior written|the other party's] consent[|, save to an affiliate]."
        }
        7 => {
            "[The Customer|An independent accountant] may inspect the [books|records|premises] of the Supplier [once a year|upon <n> days' notice] during business hours."
        }
        _ => {
            "[No party is in default|Performance is excused] while [fire|flood|war|strikes|epidemics] [beyond its control|and like events] prevent it[|, for at most <n> days]."
        }
    };
    let body = dice.fill(says);
    let system = format!(
        "{POLICY}\n\nYou support the legal department. Name the type of the contract clause that the user sends. Allowed types: {}. One type, nothing else.",
        CLAUSES.join(", ")
    );
    Text { others: &CLAUSES, ..Text::new(&system, body, CLAUSES[at].to_owned()) }
}

pub(super) fn expenses(dice: &mut Dice) -> Text {
    let violation = dice.share() < 0.3;
    let says = if violation {
        "[Dinner for <n> with [wine|champagne] at EUR <money> a head|First-class flight to <city> of two hours|Taxi of EUR <money> without a receipt|Hotel in <city> at three times the allowance|Gift of EUR <money> to a public official|Mini-bar and films, room in <city>]"
    } else {
        "[Train to <city>, second class, receipt attached|Lunch with a client in <city>, EUR 18.<n> each|Hotel in <city>, <n> percent below the allowance|Economy flight to <city>, booked <days> days ahead|Printing of posters for a fair in <city>|Mileage of <n> km to a customer]"
    };
    let note = dice.fill("[|, approved by nobody|, project <order>|, travelled on <date>|, first claim this month]");
    let body = dice.fill(says);
    let user = format!(
        "Claim: {body}{note}\nRules: no first class under four hours; meals up to EUR 60 a person without spirits; every amount needs a receipt; no gifts to officials.\nIs the claim compliant or a violation?"
    );
    let answer = YES_NO[usize::from(violation)].to_owned();
    Text {
        others: &YES_NO,
        ..Text::new(
            "You check expense claims against the travel rules. Answer `compliant` or `violation`.",
            user,
            answer,
        )
    }
}

pub(super) fn parts(dice: &mut Dice) -> Text {
    let (part, maker, size) =
        (dice.slot("part"), dice.one(&["Velo", "Tark", "Omni", "Brixon", "Sela"]), 2 + dice.below(58));
    let unit = dice.one(&["mm", "cm", "ml", "W"]);
    let written = match dice.below(4) {
        0 => format!("{maker} {part}, {size}{unit}"),
        1 => format!("{} {size} {unit} ({})", part.to_uppercase(), maker.to_uppercase()),
        2 => format!("{part} by {maker} - size {size} {unit} - new"),
        _ => format!("spare: {maker}/{part}/{size}{unit}"),
    };
    let answer = json!({"part": part, "maker": maker, "size": size.to_string(), "unit": unit}).to_string();
    let user = format!("Catalogue line: {written}\nSplit the line into part, maker, size and unit. JSON only.");
    Text::new("You normalise the spare parts catalogue.", user, answer)
}

pub(super) fn meetings(dice: &mut Dice) -> Text {
    let topics = [
        "the launch of the <thing>",
        "late deliveries to <city>",
        "the audit by <firm>",
        "hiring in <city>",
        "prices for <part>s",
        "the service backlog of <n> cases",
    ];
    let mut note = String::new();
    let mut said = Vec::new();
    for _ in 0..4 + dice.below(5) {
        let topic = dice.one(&topics);
        let topic = dice.fill(topic);
        let line = dice
            .fill("[<first>|<first> <last>|The chair|Finance|Sales] [reported on|asked about|objected to|presented] ");
        let outcome = dice.fill("[; it was agreed to wait until <date>|; <n> percent over plan|; no decision|; <first> will follow up by <date>|; budget of <money> thousand approved]");
        note.push_str(&format!("- {line}{topic}{outcome}\n"));
        said.push(topic);
    }
    let closing = dice.fill("[Next steps were assigned until <date>.|Several points stay open.|A decision is due on <date>.|The mood was constructive.]");
    let answer = format!("The meeting dealt with {} and {}. {closing}", said[0], said[1]);
    let system = format!(
        "{POLICY}\n\nSummarise the minutes that the user sends in two sentences for the management board. Leave out names of persons."
    );
    Text::new(&system, note, answer)
}

pub(super) fn replies(dice: &mut Dice) -> Text {
    let (first, last, order) = (dice.slot("first"), dice.slot("last"), dice.slot("order"));
    let matter = dice.fill("[the <part> is missing|the <thing> arrived damaged|the delivery is <days> days late|the display stays dark|you sent <n> instead of one]");
    let contact = dice.fill(
        "[You can reach me at <phone>|My address is <mail>|Please refund to <iban>|Call <phone> or write to <mail>]",
    );
    let user = format!(
        "Customer: {first} {last}\nOrder: {order}\nMessage: {} {matter}. {contact}.\n\nWrite the reply.",
        dice.slot("hello")
    );
    let sorry = dice.fill("[we are sorry|please accept our apologies|thank you for telling us]");
    let next = dice.fill("[A replacement leaves <city> on <date>|Our technician will call within <days> days|We have opened a return and will refund EUR <money>|A colleague checks the stock and writes by <date>]");
    let close = dice.fill(
        "[Do write again if anything is unclear.|We hope to keep you as a customer.|Thank you for your patience.]",
    );
    let answer = format!("Dear {first} {last}, {sorry} that {matter}. {next}. {close}");
    let system = format!(
        "{POLICY}\n\nYou write replies for customer service: at most four sentences, friendly, with the next step and its date."
    );
    Text::new(&system, user, answer)
}

pub(super) fn agent(dice: &mut Dice) -> Text {
    let (tool, goal) = match dice.below(4) {
        0 => ("create_return", "return the [<thing>|<part>] of order <order>"),
        1 => ("find_order", "see why order <order> has not left [<city>|the warehouse]"),
        2 => ("find_stock", "know how many <part>s are in [<city>|stock]"),
        _ => ("send_message", "tell <firm> that the <thing> is [delayed|on its way|ready]"),
    };
    let goal = dice.fill(goal);
    let user = format!("Goal: {goal}");
    let answer = json!({"tool": tool, "arguments": {"query": goal}}).to_string();
    let system = format!(
        "{POLICY}\n\nYou are the order assistant. Decide on the next tool to call until the goal of the user is reached."
    );
    let loops = dice.below(5) as usize;
    Text { tools: &TOOLS, loops, ..Text::new(&system, user, answer) }
}

pub(super) fn handbook(dice: &mut Dice) -> Text {
    let (ask, answer) = match dice.below(6) {
        0 => (
            "[How many|What number of] holidays do I get [after <n> years|as a part-timer|in my first year]?",
            "You have thirty days a year, in proportion to your hours; see chapter 4.",
        ),
        1 => (
            "[Can|May] I work from [home|abroad|<city>] for [<days> days|a month]?",
            "Up to ninety days a year, with your manager's consent; see chapter 6.",
        ),
        2 => (
            "[Who|Which desk] do I [tell|inform] when I am [ill|sick] [on a Monday|abroad|for more than <n> days]?",
            "Tell your manager before ten and send the certificate on day three; see chapter 5.",
        ),
        3 => (
            "[Where|How] do I [order|get] a new [laptop|monitor|phone|chair]?",
            "Through the portal under Equipment; your manager approves; see chapter 9.",
        ),
        4 => (
            "[What|How much] is [paid|refunded] for [training|a course|a language class] in <city>?",
            "The company pays up to 2,000 euros a year; see chapter 8.",
        ),
        _ => (
            "[When|On which day] is [the salary|my bonus|overtime] paid in [December|<date>|summer]?",
            "On the 25th, or the working day before; see chapter 3.",
        ),
    };
    let user = dice.fill(ask);
    Text::new(
        "You answer questions of employees from the staff handbook of Northwind Instruments. Name the chapter.",
        user,
        answer.to_owned(),
    )
}

/// What belongs to no task: people try things.
pub(super) fn free(dice: &mut Dice) -> Text {
    let ask = dice.one(&[
        "Write a [limerick|haiku|toast] for [my colleague <first>|the retirement of <first> <last>|our team in <city>]",
        "Translate into [Portuguese|Danish|Czech]: the <thing> must be [cleaned|calibrated|switched off] every <n> hours",
        "Why does [a spreadsheet|my macro|this formula] show [#REF!|#NAME?|a circular reference] when I [copy|sort|filter] it?",
        "Explain [osmosis|a p-value|standard deviation|double-entry bookkeeping] to [a child|a lawyer|the board]",
        "Ideas for [a team event|a stand at the fair] in <city> with <n> people and <money> euros",
        "Make this [politer|shorter|clearer]: I told <first> (<mail>) <n> times that the report is late",
        "What is a good name for [a cat|our new <thing>|an internal newsletter]?",
        "Draft a regular expression that finds [dates|part numbers|<n> digits in a row]",
        "Which [train|flight|museum] would you take in <city> on <date>?",
        "Turn these numbers into a table: <n>, <n>, <money>, <n>, <money>",
    ]);
    let user = dice.fill(ask);
    let answer = dice.fill("[Sure. Here is a first version: |Of course! |Here you go: |That depends. ][<thing>, <city> and <n> more|try it with <n> first, then with <money>|I would start with <city>|the short answer is <n>][.|, and let me know.|; shall I go on?]");
    Text::new("You are a helpful assistant.", user, answer)
}
