//! A chat completion request: bytes → [`ChatRequest`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    MAX_BIAS, MAX_BIASED, MAX_CHOICES, MAX_CONTENT_BYTES, MAX_MESSAGES, MAX_PARTS, MAX_PENALTY, MAX_SCHEMA_BYTES,
    MAX_STOP_BYTES, MAX_STOPS, MAX_TOKENS, MAX_TOP_LOGPROBS, REPETITION_PENALTY, WireError,
    field::{self, invalid, missing, present, unsupported, wrong_type},
};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the application; `developer` in newer clients means the same.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The protocol's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message: text only in this version. Text parts are joined without a separator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What shape the answer must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema: the protocol's `json_schema` object, kept as sent.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole. Not of the protocol: vLLM's `structured_outputs`.
    Regex(String),
    /// One of these texts; as [`Regex`](Self::Regex).
    Choice(Vec<String>),
}

/// How the texts of a choice are compared where they are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelScores {
    /// By the probability of the whole text.
    Sum,
    /// By the probability of a token, on average: a long text is not at a loss for its length.
    Mean,
}

/// A chat completion request within the limits of [`super`]. Unknown fields are ignored, as the protocol's servers do;
/// fields that would change the answer and cannot be honoured (tools, images, audio) are refused.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// A specialist, a base, a backend's model, or `auto`.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// Most tokens to generate (`max_completion_tokens`, else `max_tokens`).
    pub max_tokens: Option<u32>,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// Least share of the most probable token's probability, 0 to 1. Not of the protocol, but of many servers that speak it.
    pub min_p: Option<f32>,
    /// −2 to 2.
    pub frequency_penalty: Option<f32>,
    /// −2 to 2.
    pub presence_penalty: Option<f32>,
    /// 0.1 to 10; 1 is none. Not of the protocol, but of many servers that speak it.
    pub repetition_penalty: Option<f32>,
    /// What is added to the logits of tokens, −100 to 100: by token id, ascending.
    pub logit_bias: Vec<(u32, f32)>,
    /// Choices wanted, 1 to 8.
    pub n: u32,
    /// At most four strings that end the answer.
    pub stop: Vec<String>,
    /// Seed of the sampling.
    pub seed: Option<i64>,
    /// Whether the answer comes as server-sent events.
    pub stream: bool,
    /// Whether the stream ends with a usage chunk.
    pub include_usage: bool,
    /// Shape of the answer.
    pub response_format: ResponseFormat,
    /// Whether log-probabilities of the tokens are wanted.
    pub logprobs: bool,
    /// Alternatives wanted at each token, 0 to 20.
    pub top_logprobs: Option<u8>,
    /// Whether a base may look up in the prompt how its answer goes on: the same answer, sooner where it copies. Our own field; not
    /// sent on to other servers.
    pub prompt_lookup: bool,
    /// Whether a base says of every text of a choice how probable it is, and answers with the most probable one, instead of writing one
    /// token by token. Our own field; other servers are not asked for it.
    pub label_scores: Option<LabelScores>,
}

impl ChatRequest {
    /// A request with defaults for everything but model and messages.
    pub fn new(model: impl Into<String>, messages: Vec<Message>) -> Self {
        Self {
            model: model.into(),
            messages,
            max_tokens: None,
            temperature: None,
            top_p: None,
            min_p: None,
            frequency_penalty: None,
            presence_penalty: None,
            repetition_penalty: None,
            logit_bias: Vec::new(),
            n: 1,
            stop: Vec::new(),
            seed: None,
            stream: false,
            include_usage: false,
            response_format: ResponseFormat::Text,
            logprobs: false,
            top_logprobs: None,
            prompt_lookup: false,
            label_scores: None,
        }
    }

    /// Reads a request body.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let map = field::object(bytes)?;
        refuse_unsupported(&map)?;
        let logprobs = field::boolean(&map, "logprobs")?.unwrap_or(false);
        let top_logprobs = field::integer(&map, "top_logprobs", 0, MAX_TOP_LOGPROBS.into())?;
        if top_logprobs.is_some() && !logprobs {
            return Err(invalid("top_logprobs", "needs `logprobs` to be true"));
        }
        let stream = field::boolean(&map, "stream")?.unwrap_or(false);
        let max_completion_tokens = field::integer(&map, "max_completion_tokens", 1, MAX_TOKENS.into())?;
        let max_tokens = field::integer(&map, "max_tokens", 1, MAX_TOKENS.into())?;
        let number = |name, low, high| field::number(&map, name, low, high).map(|x| x.map(|x| x as f32));
        let request = Self {
            model: field::model(&map)?,
            messages: messages(&map)?,
            // The ranges above fit the types below.
            max_tokens: max_completion_tokens.or(max_tokens).map(|n| n as u32),
            temperature: number("temperature", 0.0, 2.0)?,
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            frequency_penalty: number("frequency_penalty", -MAX_PENALTY, MAX_PENALTY)?,
            presence_penalty: number("presence_penalty", -MAX_PENALTY, MAX_PENALTY)?,
            repetition_penalty: number("repetition_penalty", REPETITION_PENALTY[0], REPETITION_PENALTY[1])?,
            logit_bias: logit_bias(&map)?,
            n: field::integer(&map, "n", 1, MAX_CHOICES.into())?.unwrap_or(1) as u32,
            stop: stop(&map)?,
            seed: field::integer(&map, "seed", i64::MIN, i64::MAX)?,
            stream,
            // Without a stream the option says nothing, so one request has one form.
            include_usage: include_usage(&map)? && stream,
            response_format: form(&map)?,
            logprobs,
            top_logprobs: top_logprobs.map(|n| n as u8),
            prompt_lookup: field::boolean(&map, "prompt_lookup")?.unwrap_or(false),
            label_scores: label_scores(&map)?,
        };
        request.check_label_scores()?;
        Ok(request)
    }

    /// Labels that are scored are a closed set, and nothing is drawn.
    fn check_label_scores(&self) -> Result<(), WireError> {
        let problem = match self {
            Self { label_scores: None, .. } => return Ok(()),
            Self { response_format, .. } if !matches!(response_format, ResponseFormat::Choice(_)) => {
                "needs the labels in `structured_outputs.choice`"
            }
            Self { n, .. } if *n > 1 => "gives one answer: leave out `n`",
            Self { logprobs: true, .. } => "writes no tokens: leave out `logprobs`",
            Self { logit_bias, .. } if !logit_bias.is_empty() => "moves no logits: leave out `logit_bias`",
            _ => return Ok(()),
        };
        Err(invalid("label_scores", problem))
    }

    /// The text that a specialist reads: the last `user` message.
    pub fn last_user_text(&self) -> Option<&str> {
        self.messages.iter().rev().find(|message| message.role == Role::User).map(|message| message.content.as_str())
    }

    /// The request as a body for another server that speaks the protocol; absent fields stay absent. The same bytes for the
    /// same request: this is also what the audit log commits to.
    pub fn to_body(&self) -> Value {
        let mut body = Map::new();
        body.insert("model".into(), json!(self.model));
        body.insert("messages".into(), json!(self.messages));
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.into(), value);
            }
        };
        put("max_tokens", self.max_tokens.map(Value::from));
        put("temperature", self.temperature.map(Value::from));
        put("top_p", self.top_p.map(Value::from));
        put("min_p", self.min_p.map(Value::from));
        put("frequency_penalty", self.frequency_penalty.map(Value::from));
        put("presence_penalty", self.presence_penalty.map(Value::from));
        put("repetition_penalty", self.repetition_penalty.map(Value::from));
        let bias: Map<String, Value> = self.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
        put("logit_bias", (!bias.is_empty()).then(|| bias.into()));
        put("n", (self.n != 1).then(|| self.n.into()));
        put("stop", (!self.stop.is_empty()).then(|| json!(self.stop)));
        put("seed", self.seed.map(Value::from));
        put("stream", self.stream.then(|| true.into()));
        put("stream_options", (self.stream && self.include_usage).then(|| json!({"include_usage": true})));
        put(
            "structured_outputs",
            match &self.response_format {
                ResponseFormat::Regex(regex) => Some(json!({"regex": regex})),
                ResponseFormat::Choice(choices) => Some(json!({"choice": choices})),
                _ => None,
            },
        );
        put(
            "response_format",
            match &self.response_format {
                ResponseFormat::Text | ResponseFormat::Regex(_) | ResponseFormat::Choice(_) => None,
                ResponseFormat::JsonObject => Some(json!({"type": "json_object"})),
                ResponseFormat::JsonSchema(schema) => Some(json!({"type": "json_schema", "json_schema": schema})),
            },
        );
        put("logprobs", self.logprobs.then(|| true.into()));
        put("top_logprobs", self.top_logprobs.map(Value::from));
        put("prompt_lookup", self.prompt_lookup.then(|| true.into()));
        put("label_scores", self.label_scores.map(|scores| json!(scores)));
        Value::Object(body)
    }
}

/// What would silently change the meaning of the answer if it were ignored.
fn refuse_unsupported(map: &Map<String, Value>) -> Result<(), WireError> {
    for name in ["tools", "functions"] {
        match present(map, name) {
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(_) => return Err(unsupported(name, "is not supported: models here answer with text")),
            None => {}
        }
    }
    if let Some(Value::Array(modalities)) = present(map, "modalities")
        && modalities.iter().any(|modality| modality != "text")
    {
        return Err(unsupported("modalities", "may only hold `text`"));
    }
    Ok(())
}

fn messages(map: &Map<String, Value>) -> Result<Vec<Message>, WireError> {
    let value = present(map, "messages").ok_or_else(|| missing("messages"))?;
    let items = value.as_array().ok_or_else(|| wrong_type("messages", "an array", value))?;
    if items.is_empty() || items.len() > MAX_MESSAGES {
        return Err(invalid("messages", format!("must hold 1 to {MAX_MESSAGES} messages, not {}", items.len())));
    }
    items.iter().enumerate().map(|(idx, item)| message(&format!("messages[{idx}]"), item)).collect()
}

fn message(path: &str, item: &Value) -> Result<Message, WireError> {
    let map = item.as_object().ok_or_else(|| wrong_type(path, "an object", item))?;
    let role = role(&format!("{path}.role"), map)?;
    for name in ["tool_calls", "function_call", "audio"] {
        match present(map, name) {
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(_) => return Err(unsupported(&format!("{path}.{name}"), "is not supported")),
            None => {}
        }
    }
    let path = format!("{path}.content");
    let content = match map.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => joined_parts(&path, parts)?,
        // What a refusal looked like when it was answered.
        None | Some(Value::Null) if role == Role::Assistant => String::new(),
        None | Some(Value::Null) => return Err(missing(&path)),
        Some(other) => return Err(wrong_type(&path, "a string or an array of text parts", other)),
    };
    if content.len() > MAX_CONTENT_BYTES {
        return Err(invalid(&path, format!("has {} bytes, at most {MAX_CONTENT_BYTES} are read", content.len())));
    }
    Ok(Message { role, content })
}

fn role(path: &str, map: &Map<String, Value>) -> Result<Role, WireError> {
    let value = present(map, "role").ok_or_else(|| missing(path))?;
    match value.as_str().ok_or_else(|| wrong_type(path, "a string", value))? {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => Err(unsupported(path, "may not be `tool`: tools are not supported")),
        _ => Err(invalid(path, "must be `system`, `developer`, `user` or `assistant`")),
    }
}

fn joined_parts(path: &str, parts: &[Value]) -> Result<String, WireError> {
    if parts.is_empty() || parts.len() > MAX_PARTS {
        return Err(invalid(path, format!("must hold 1 to {MAX_PARTS} parts, not {}", parts.len())));
    }
    let mut text = String::new();
    for (idx, part) in parts.iter().enumerate() {
        let path = format!("{path}[{idx}]");
        let map = part.as_object().ok_or_else(|| wrong_type(&path, "an object", part))?;
        let field = match map.get("type").and_then(Value::as_str) {
            Some("text") => "text",
            Some("refusal") => "refusal",
            Some("image_url" | "input_image" | "input_audio" | "file") => {
                return Err(unsupported(
                    &format!("{path}.type"),
                    "must be `text`: images, audio and files are not supported",
                ));
            }
            _ => return Err(invalid(&format!("{path}.type"), "must be `text`")),
        };
        let path = format!("{path}.{field}");
        let value = map.get(field).ok_or_else(|| missing(&path))?;
        text.push_str(value.as_str().ok_or_else(|| wrong_type(&path, "a string", value))?);
    }
    Ok(text)
}

/// `{"token id": bias}`, in the order of the ids.
fn logit_bias(map: &Map<String, Value>) -> Result<Vec<(u32, f32)>, WireError> {
    let entries = match present(map, "logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("logit_bias", "an object", other)),
    };
    if entries.len() > MAX_BIASED {
        return Err(invalid("logit_bias", format!("may name at most {MAX_BIASED} tokens, not {}", entries.len())));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        // One way to write each id: nothing is named twice.
        let id = key.parse::<u32>().ok().filter(|id| id.to_string() == *key);
        let id = id.ok_or_else(|| invalid("logit_bias", "must name tokens by their ids, such as \"50256\""))?;
        let path = format!("logit_bias.{id}");
        let bias = value.as_f64().ok_or_else(|| wrong_type(&path, "a number", value))?;
        if !(-MAX_BIAS..=MAX_BIAS).contains(&bias) {
            return Err(invalid(&path, format!("must be between -{MAX_BIAS} and {MAX_BIAS}, not {bias}")));
        }
        biases.push((id, bias as f32));
    }
    biases.sort_unstable_by_key(|(id, _)| *id);
    Ok(biases)
}

fn label_scores(map: &Map<String, Value>) -> Result<Option<LabelScores>, WireError> {
    match present(map, "label_scores") {
        None => Ok(None),
        Some(Value::String(word)) if word == "sum" => Ok(Some(LabelScores::Sum)),
        Some(Value::String(word)) if word == "mean" => Ok(Some(LabelScores::Mean)),
        Some(Value::String(_)) => Err(invalid("label_scores", "must be `sum` or `mean`")),
        Some(other) => Err(wrong_type("label_scores", "a string", other)),
    }
}

fn stop(map: &Map<String, Value>) -> Result<Vec<String>, WireError> {
    let items = match present(map, "stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(idx, item)| {
                item.as_str().map(str::to_owned).ok_or_else(|| wrong_type(&format!("stop[{idx}]"), "a string", item))
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", other)),
    };
    if items.len() > MAX_STOPS {
        return Err(invalid("stop", format!("may hold at most {MAX_STOPS} strings, not {}", items.len())));
    }
    if let Some(item) = items.iter().find(|item| item.is_empty() || item.len() > MAX_STOP_BYTES) {
        return Err(invalid("stop", format!("strings must have 1 to {MAX_STOP_BYTES} bytes, not {}", item.len())));
    }
    Ok(items)
}

fn include_usage(map: &Map<String, Value>) -> Result<bool, WireError> {
    match present(map, "stream_options") {
        None => Ok(false),
        Some(Value::Object(options)) => match present(options, "include_usage") {
            None => Ok(false),
            Some(value) => {
                value.as_bool().ok_or_else(|| wrong_type("stream_options.include_usage", "a boolean", value))
            }
        },
        Some(other) => Err(wrong_type("stream_options", "an object", other)),
    }
}

/// The form of `response_format` or of `structured_outputs`, of which only one may be there.
fn form(map: &Map<String, Value>) -> Result<ResponseFormat, WireError> {
    let format = response_format(map)?;
    let Some(value) = present(map, "structured_outputs") else { return Ok(format) };
    let asked = value.as_object().ok_or_else(|| wrong_type("structured_outputs", "an object", value))?;
    if format != ResponseFormat::Text {
        return Err(invalid("structured_outputs", "may not stand beside `response_format`: ask for one form"));
    }
    let forms: Vec<_> = asked.iter().filter(|(_, value)| !value.is_null()).collect();
    let [(name, value)] = forms[..] else {
        return Err(invalid("structured_outputs", "must hold one of `json`, `regex` and `choice`"));
    };
    let path = format!("structured_outputs.{name}");
    let n_bytes = value.to_string().len();
    if n_bytes > MAX_SCHEMA_BYTES {
        return Err(invalid(&path, format!("has {n_bytes} bytes, at most {MAX_SCHEMA_BYTES} are read")));
    }
    match (name.as_str(), value) {
        ("json", Value::Object(_)) => Ok(ResponseFormat::JsonSchema(json!({"name": "json", "schema": value}))),
        ("json", _) => Err(wrong_type(&path, "a JSON Schema", value)),
        ("regex", Value::String(regex)) => Ok(ResponseFormat::Regex(regex.clone())),
        ("regex", _) => Err(wrong_type(&path, "a string", value)),
        ("choice", Value::Array(choices)) => {
            let texts: Option<Vec<String>> = choices.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            let texts = texts.ok_or_else(|| wrong_type(&path, "an array of strings", value))?;
            if texts.is_empty() || texts.iter().any(String::is_empty) {
                return Err(invalid(&path, "must hold at least one text, and none that is empty"));
            }
            Ok(ResponseFormat::Choice(texts))
        }
        ("choice", _) => Err(wrong_type(&path, "an array of strings", value)),
        _ => Err(unsupported(&path, "is not supported: `json`, `regex` and `choice` are")),
    }
}

fn response_format(map: &Map<String, Value>) -> Result<ResponseFormat, WireError> {
    let Some(value) = present(map, "response_format") else { return Ok(ResponseFormat::Text) };
    let format = value.as_object().ok_or_else(|| wrong_type("response_format", "an object", value))?;
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(ResponseFormat::Text),
        Some("json_object") => Ok(ResponseFormat::JsonObject),
        Some("json_schema") => {
            let path = "response_format.json_schema";
            let schema = format.get("json_schema").ok_or_else(|| missing(path))?;
            if !schema.is_object() {
                return Err(wrong_type(path, "an object", schema));
            }
            let n_bytes = schema.to_string().len();
            if n_bytes > MAX_SCHEMA_BYTES {
                return Err(invalid(path, format!("has {n_bytes} bytes, at most {MAX_SCHEMA_BYTES} are read")));
            }
            Ok(ResponseFormat::JsonSchema(schema.clone()))
        }
        _ => Err(invalid("response_format.type", "must be `text`, `json_object` or `json_schema`")),
    }
}
