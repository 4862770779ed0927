//! Traffic of an invented company, for demonstrations and load: what its applications ask of LLMs in a year, with the truth beside it.
//!
//! Nothing here is real and every record says so (`synthetic/` begins each id). Texts come from small grammars of our own; people, addresses and account
//! numbers are invented or reserved for examples. What is imitated: tasks of every kind under templates of their own, some with a preamble in common; volumes that
//! grow, shrink, follow the working week and the end of the month; repeats that a cache would answer; a teacher that errs at a known rate; free questions that belong to
//! no task; personal data. The same seed gives the same traffic.

use std::collections::BTreeMap;

use metier_model::specialist::mix;
use serde::Serialize;
use serde_json::json;

use crate::exchange::{Exchange, Said, Speaker, Tokens};

const MS_PER_HOUR: u64 = 3_600_000;
const MS_PER_WEEK: u64 = 168 * MS_PER_HOUR;
/// Bytes of text that are counted as one token.
const BYTES_A_TOKEN: usize = 4;

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Calls, about: volumes of weeks are rounded.
    pub calls: u64,
    /// Weeks.
    pub weeks: u64,
    /// When the first week begins, in milliseconds since 1970.
    pub start_ms: u64,
    /// Seed of everything.
    pub seed: u64,
}

/// What is true of one task of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    /// Its name, as it stands in the ids.
    pub task: &'static str,
    /// `classify`, `extract`, `generate`, or `none` for what is no task.
    pub kind: &'static str,
    /// The model that it is sent to.
    pub model: &'static str,
    /// Share of all calls over the whole time.
    pub share: f64,
    /// Probability that the teacher's answer is another label than the right one.
    pub teacher_error: f64,
    /// Share of calls whose prompt is one of a few that come again and again.
    pub repeats: f64,
    /// Whether its texts hold personal data.
    pub personal: bool,
    /// Calls by week, from 0.
    pub calls: Vec<u64>,
}

struct Kind {
    truth: (&'static str, &'static str, &'static str, f64, f64, f64, bool),
    /// Growth over the whole time, as a factor.
    growth: f64,
    /// Weight of weekends against working days.
    weekend: f64,
    /// How much more comes in the last week of a month.
    month_end: f64,
    make: fn(&mut Dice) -> Text,
}

/// A request and its right answer.
struct Text {
    system: String,
    user: String,
    answer: String,
    /// Labels that a teacher who errs would give instead.
    others: &'static [&'static str],
    tools: &'static [&'static str],
    schema: Option<String>,
    /// Earlier turns: a call of a tool and its result.
    loops: usize,
}

impl Text {
    fn new(system: &str, user: String, answer: String) -> Self {
        Self { system: system.to_owned(), user, answer, others: &[], tools: &[], schema: None, loops: 0 }
    }
}

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

/// Truth of the traffic: tasks in the order in which they are numbered.
pub fn truth(plan: &Plan) -> Vec<Truth> {
    let volumes = volumes(plan);
    kinds()
        .into_iter()
        .zip(volumes)
        .map(|(kind, calls)| {
            let (task, kind, model, share, teacher_error, repeats, personal) = kind.truth;
            Truth { task, kind, model, share, teacher_error, repeats, personal, calls }
        })
        .collect()
}

/// Calls by task and week.
fn volumes(plan: &Plan) -> Vec<Vec<u64>> {
    let kinds = kinds();
    let weight = |kind: &Kind, week: u64| {
        let at = if plan.weeks > 1 { week as f64 / (plan.weeks - 1) as f64 } else { 0.5 };
        let last_of_month = week % 4 == 3;
        let noise = 0.9 + 0.2 * Dice::new(plan.seed ^ mix(week ^ kind.truth.0.len() as u64), week).share();
        // The year's season: quiet around the turn of the year.
        let season = 1.0 - 0.25 * f64::from(u8::from(week % 52 >= 51 || week.is_multiple_of(52)));
        kind.growth.powf(at - 0.5) * if last_of_month { kind.month_end } else { 1.0 } * noise * season
    };
    kinds
        .iter()
        .map(|kind| {
            let weights: Vec<f64> = (0..plan.weeks).map(|week| weight(kind, week)).collect();
            let sum: f64 = weights.iter().sum();
            let calls = kind.truth.3 * plan.calls as f64;
            weights.iter().map(|weight| (calls * weight / sum).round() as u64).collect()
        })
        .collect()
}

/// The calls, week after week; within a week the tasks are mixed by time. Each with the number of its task.
pub fn traffic(plan: Plan) -> impl Iterator<Item = (usize, Exchange)> {
    let volumes = volumes(&plan);
    let kinds = kinds();
    (0..plan.weeks).flat_map(move |week| {
        let mut calls: Vec<(u64, usize, u64)> = Vec::new();
        for (task, kind) in kinds.iter().enumerate() {
            for n in 0..volumes[task][week as usize] {
                let mut dice = Dice::new(plan.seed ^ mix(task as u64 + 1), week << 32 | n);
                calls.push((plan.start_ms + week * MS_PER_WEEK + time_in_week(&mut dice, kind.weekend), task, n));
            }
        }
        calls.sort_unstable();
        let made: Vec<(usize, Exchange)> = calls
            .into_iter()
            .map(|(time_ms, task, n)| {
                (
                    task,
                    call(&kinds[task], Dice::new(plan.seed ^ mix(100 + task as u64), week << 32 | n), time_ms, week, n),
                )
            })
            .collect();
        made
    })
}

/// Working hours on working days; fewer at night and on weekends.
fn time_in_week(dice: &mut Dice, weekend: f64) -> u64 {
    loop {
        let hour = dice.below(168);
        let (day, of_day) = (hour / 24, hour % 24);
        let weight = if day >= 5 { weekend } else { 1.0 } * if (7..19).contains(&of_day) { 1.0 } else { 0.15 };
        if dice.share() < weight {
            return hour * MS_PER_HOUR + dice.below(MS_PER_HOUR);
        }
    }
}

fn call(kind: &Kind, mut dice: Dice, time_ms: u64, week: u64, n: u64) -> Exchange {
    let (task, _, model, _, teacher_error, repeats, _) = kind.truth;
    // A repeat is one of forty prompts, with the dice that made it.
    let mut text = if dice.share() < repeats {
        let one = dice.below(40);
        (kind.make)(&mut Dice::new(mix(task.len() as u64), one))
    } else {
        (kind.make)(&mut dice)
    };
    if !text.others.is_empty() && dice.share() < teacher_error {
        let other = text.others[dice.below(text.others.len() as u64) as usize];
        text.answer = other.to_owned();
    }
    let mut messages = Vec::new();
    if !text.system.is_empty() {
        messages.push(Said { by: Speaker::System, text: text.system });
    }
    messages.push(Said { by: Speaker::User, text: text.user });
    for turn in 0..text.loops {
        let tool = text.tools[dice.below(text.tools.len() as u64) as usize];
        messages.push(Said {
            by: Speaker::Assistant,
            text: json!({"tool": tool, "arguments": {"step": turn}}).to_string(),
        });
        messages.push(Said { by: Speaker::Tool, text: json!({"status": "ok", "rows": dice.below(9)}).to_string() });
    }
    let failed = dice.share() < 0.004;
    let input: usize = messages.iter().map(|said| said.text.len()).sum();
    let tokens = |bytes: usize| bytes.div_ceil(BYTES_A_TOKEN) as u64;
    let output = if failed { 0 } else { tokens(text.answer.len()) };
    Exchange {
        id: Some(format!("synthetic/{task}/{week:03}-{n:07}")),
        time_ms: Some(time_ms),
        elapsed_ms: Some(250 + 20 * output + dice.below(300)),
        model: model.to_owned(),
        named: None,
        group: Some(format!("user-{}", dice.below(400))),
        messages,
        tools: text.tools.iter().map(|tool| (*tool).to_owned()).collect(),
        schema: text.schema,
        answer: (!failed).then_some(text.answer),
        tokens: Some(Tokens { input: tokens(input), output, cached: 0 }),
        failed,
        ..Exchange::default()
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |truth, growth, weekend, month_end, make| Kind { truth, growth, weekend, month_end, make };
    vec![
        kind(("ticket-routing", "classify", "gpt-4o", 0.24, 0.04, 0.05, false), 1.6, 0.3, 1.0, tickets),
        kind(("review-mood", "classify", "gpt-4o-mini", 0.14, 0.06, 0.02, false), 1.0, 0.9, 1.0, reviews),
        kind(("invoice-fields", "extract", "gpt-4o", 0.09, 0.0, 0.0, true), 1.2, 0.1, 2.5, invoices),
        kind(("clause-type", "classify", "gpt-4.1", 0.05, 0.05, 0.0, false), 0.8, 0.05, 1.2, clauses),
        kind(("expense-check", "classify", "gpt-4.1-mini", 0.08, 0.03, 0.0, false), 1.1, 0.1, 2.2, expenses),
        kind(("part-names", "extract", "gpt-4o-mini", 0.09, 0.0, 0.03, false), 1.0, 0.2, 1.0, parts),
        kind(("meeting-summary", "generate", "claude-sonnet-4-5", 0.05, 0.0, 0.0, false), 1.8, 0.05, 1.0, meetings),
        kind(("reply-draft", "generate", "gpt-4.1", 0.07, 0.0, 0.0, true), 1.3, 0.3, 1.0, replies),
        kind(("order-agent", "generate", "claude-sonnet-4-5", 0.06, 0.0, 0.0, false), 2.5, 0.3, 1.0, agent),
        kind(("handbook-questions", "generate", "gpt-4o-mini", 0.08, 0.0, 0.6, false), 1.0, 0.2, 1.0, handbook),
        kind(("no-task", "none", "gpt-4o", 0.05, 0.0, 0.0, true), 1.0, 0.6, 1.0, free),
    ]
}

/// A die that is thrown by hashing: no state but a counter.
struct Dice {
    key: u64,
    n: u64,
}

impl Dice {
    fn new(seed: u64, key: u64) -> Self {
        Self { key: mix(seed ^ mix(key ^ 0x9e37_79b9_7f4a_7c15)), n: 0 }
    }

    fn next(&mut self) -> u64 {
        self.n += 1;
        mix(self.key.wrapping_add(self.n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    /// Fills a pattern: `[a|b]` is one of these, `<thing>` a thing, `<order>` a number of an order.
    fn fill(&mut self, pattern: &str) -> String {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['[', '<']) {
            out.push_str(&rest[..at]);
            let (open, close) = if rest.as_bytes()[at] == b'[' { ('[', ']') } else { ('<', '>') };
            let mut depth = 0;
            let end = rest[at..].find(|c: char| {
                depth += i32::from(c == open) - i32::from(c == close);
                depth == 0
            });
            let Some(end) = end else { break };
            let inner = &rest[at + 1..at + end];
            if close == ']' {
                // Choices may hold choices and slots of their own.
                let mut depth = 0;
                let choices: Vec<&str> = inner
                    .split(|c: char| {
                        depth += i32::from(c == '[') - i32::from(c == ']');
                        c == '|' && depth == 0
                    })
                    .collect();
                let chosen = self.one(&choices);
                let chosen = self.fill(chosen);
                out.push_str(&chosen);
            } else {
                let filled = self.slot(inner);
                out.push_str(&filled);
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        out
    }

    fn slot(&mut self, name: &str) -> String {
        match name {
            "thing" => {
                let kind = self.one(&[
                    "pH meter",
                    "centrifuge",
                    "balance",
                    "spectrometer",
                    "pump",
                    "incubator",
                    "microscope",
                    "shaker",
                    "titrator",
                    "thermostat",
                    "pipette set",
                    "autoclave",
                ]);
                let model = self.one(&["N", "NX", "Pro", "Lab", "Eco", "S", "Q"]);
                format!("{kind} {model}-{}", 10 + self.below(90) * 10)
            }
            "part" => {
                let kind = self.one(&[
                    "rotor seal",
                    "glass electrode",
                    "fuse 2A",
                    "drain hose",
                    "lamp",
                    "door gasket",
                    "filter cartridge",
                    "drive belt",
                    "power supply",
                    "sensor cable",
                ]);
                kind.to_owned()
            }
            "order" => format!("NW-{}", 100_000 + self.below(900_000)),
            "n" => (2 + self.below(58)).to_string(),
            "days" => (1 + self.below(30)).to_string(),
            "money" => format!("{}.{:02}", 12 + self.below(4800), self.below(100)),
            "date" => format!("2026-{:02}-{:02}", 1 + self.below(12), 1 + self.below(28)),
            "city" => self
                .one(&[
                    "Ghent", "Porto", "Graz", "Leeds", "Turin", "Malmö", "Lyon", "Brno", "Cork", "Aarhus", "Split",
                    "Bergen",
                ])
                .to_owned(),
            "firm" => {
                let first = self.one(&[
                    "Alder", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Garnet", "Harbour", "Iris", "Juniper",
                    "Krypton", "Lumen",
                ]);
                let second = self.one(&[
                    "Labs",
                    "Clinics",
                    "Foods",
                    "Chemicals",
                    "University",
                    "Water Works",
                    "Diagnostics",
                    "Polymers",
                ]);
                format!("{first} {second}")
            }
            "first" => self
                .one(&[
                    "Amara", "Bjorn", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Katya",
                    "Luis", "Mira", "Nils", "Oona", "Pavel",
                ])
                .to_owned(),
            "last" => self
                .one(&[
                    "Abara",
                    "Brandt",
                    "Costa",
                    "Dufour",
                    "Eriksen",
                    "Fontana",
                    "Gruber",
                    "Hanley",
                    "Ivanov",
                    "Jansen",
                    "Kowal",
                    "Lindqvist",
                    "Moreau",
                    "Novak",
                ])
                .to_owned(),
            "mail" => {
                let (first, last) = (self.slot("first"), self.slot("last"));
                format!("{}.{}@example.org", first.to_lowercase(), last.to_lowercase())
            }
            // Reserved for fiction by the numbering plans of North America and of the United Kingdom.
            "phone" => format!("+1 202-555-01{:02}", self.below(100)),
            // The example of ISO 13616 and others whose check digits are right.
            "iban" => self
                .one(&[
                    "GB82 WEST 1234 5698 7654 32",
                    "DE89 3704 0044 0532 0130 00",
                    "FR14 2004 1010 0505 0001 3M02 606",
                ])
                .to_owned(),
            "since" => self.fill("[yesterday|last Monday|two weeks ago|this morning|<date>|Friday]"),
            "hello" => self.fill("[Hello|Hi|Good morning|Dear team|Hi there|To whom it may concern|Hey]"),
            "bye" => self.fill("[Thanks|Best regards|Kind regards|Thank you|Cheers|Sincerely]"),
            other => other.to_owned(),
        }
    }

    /// A pattern for a label, filled, among sentences that fit anything.
    fn letter(&mut self, says: &str) -> String {
        let before = self.fill("[|<hello>, |<hello>! |<hello>, we are a customer in <city>. |We bought a <thing> in <city>. |I write for <firm>. ]");
        let after = self.fill("[| <bye>| Please advise.| We need this solved by <date>.| This is the [second|third] time I write.| <bye>, <firm>| Order <order>.]");
        format!("{before}{}{after}", self.fill(says))
    }
}

fn tickets(dice: &mut Dice) -> Text {
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

fn reviews(dice: &mut Dice) -> Text {
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

fn invoices(dice: &mut Dice) -> Text {
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

fn clauses(dice: &mut Dice) -> Text {
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

fn expenses(dice: &mut Dice) -> Text {
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

fn parts(dice: &mut Dice) -> Text {
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

fn meetings(dice: &mut Dice) -> Text {
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

fn replies(dice: &mut Dice) -> Text {
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

fn agent(dice: &mut Dice) -> Text {
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

fn handbook(dice: &mut Dice) -> Text {
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
fn free(dice: &mut Dice) -> Text {
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

/// Counts of a traffic by task: what a reader can hold a discovery against.
pub fn totals(truth: &[Truth]) -> BTreeMap<&'static str, u64> {
    truth.iter().map(|task| (task.task, task.calls.iter().sum())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy;

    fn plan(calls: u64) -> Plan {
        Plan { calls, weeks: 12, start_ms: 1_780_272_000_000, seed: 7 }
    }

    #[test]
    fn the_traffic_is_what_its_truth_says() {
        let plan = plan(4000);
        let truth = truth(&plan);
        let mut counts: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (task, call) in traffic(plan) {
            let time = call.time_ms.unwrap_or(0);
            assert!(call.id.as_deref().is_some_and(|id| id.starts_with(&format!("synthetic/{}/", truth[task].task))));
            assert_eq!(call.model, truth[task].model);
            assert_eq!(call.failed, call.answer.is_none());
            *counts.entry((task, (time - plan.start_ms) / MS_PER_WEEK)).or_default() += 1;
        }
        for (at, task) in truth.iter().enumerate() {
            for (week, calls) in task.calls.iter().enumerate() {
                assert_eq!(
                    counts.get(&(at, week as u64)).copied().unwrap_or(0),
                    *calls,
                    "{} in week {week}",
                    task.task
                );
            }
        }
        let all: u64 = totals(&truth).values().sum();
        assert!(all.abs_diff(4000) < 80, "{all}");
        assert!((truth.iter().map(|task| task.share).sum::<f64>() - 1.0).abs() < 1e-9);
        // The agent grows, and month ends are busy where that is so.
        let agent = &truth[8].calls;
        assert!(agent[9..].iter().sum::<u64>() > agent[..3].iter().sum::<u64>());
        let invoices = &truth[2].calls;
        assert!(invoices[7] > invoices[6] && invoices[7] > invoices[8]);
    }

    #[test]
    fn the_same_seed_is_the_same_traffic_and_another_is_not() {
        let texts = |seed| traffic(Plan { seed, ..plan(300) }).map(|(_, call)| call).collect::<Vec<_>>();
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }

    #[test]
    fn personal_data_is_where_the_truth_says() {
        let truth = truth(&plan(3000));
        let mut found = vec![false; truth.len()];
        for (task, call) in traffic(plan(3000)) {
            for said in &call.messages {
                assert!(!said.text.contains(['[', '<']), "a slot was left open: {}", said.text);
                found[task] |= !privacy::detect(&said.text).is_empty();
            }
        }
        for (task, found) in truth.iter().zip(found) {
            assert_eq!(task.personal, found, "{}", task.task);
        }
    }

    #[test]
    fn the_teacher_errs_as_often_as_the_truth_says() {
        // Of the task with the clearest grammar: a right answer is told by its words.
        let (mut wrong, mut all) = (0u64, 0u64);
        for (task, call) in traffic(plan(20_000)) {
            let Some(answer) = call.answer.filter(|_| task == 3) else { continue };
            let said = &call.messages[1].text;
            if said.contains("governed by") || said.contains("construed under") {
                all += 1;
                wrong += u64::from(answer != "governing_law");
            }
        }
        // One label of nine, 5 % of errors of which one in nine names the right label again.
        let expected = 0.05 * 8.0 / 9.0;
        let share = wrong as f64 / all as f64;
        assert!(all > 80 && (share - expected).abs() < 4.0 * (expected / all as f64).sqrt(), "{wrong} of {all}");
    }
}
