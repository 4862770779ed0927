//! Which question: *which text does the base model want to see for this conversation?* A template from a model file and messages go in; pieces come out,
//! each marked as the template's own or as a person's words, so that the tokenizer can refuse control tokens in the latter.
//!
//! Deliberately absent: a loader (a template cannot include another), the clock, and any trust in the template: it comes out of a model file, so it runs on
//! fuel and into a bounded string.

use std::fmt;

use minijinja::{Environment, UndefinedBehavior, Value, context, syntax::SyntaxConfig};
/// Longest template that is compiled.
pub const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// Longest rendering without the messages' own text.
pub const MAX_MARKUP_BYTES: usize = 1 << 20;
/// Instructions of minijinja that one rendering may take: a loop over 1,024 messages takes about 20,000.
const FUEL: u64 = 2_000_000;
/// Stands for the text of a message while the template runs. A private-use character: a template has no reason to hold it, and a message's own text is not in the
/// string while it stands there.
const MARK: char = '\u{F8FE}';

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// A message of that role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Why a conversation cannot be written for the model.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model file's template is no template, or too long.
    #[error("cannot use the chat template of the model: {0}")]
    Template(String),
    /// The template stopped: it raised an error (for example on an order of roles that the model does not know), or ran out of fuel.
    #[error("the model's chat template refuses this conversation: {0}")]
    Render(String),
}

/// A part of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Written by the template: control tokens in it are control tokens.
    Markup(String),
    /// Written by a person or a program: control tokens in it are plain characters.
    Content(String),
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// In order; their texts joined are what the template would have written.
    pub pieces: Vec<Piece>,
}

impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Markup(text) | Piece::Content(text) => f.write_str(text),
        })
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// Compiles the template of a model file.
    ///
    /// # Errors
    /// It is longer than [`MAX_TEMPLATE_BYTES`], holds the private mark U+F8FE, or is no Jinja.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::Template(format!("it has {} bytes, more than {MAX_TEMPLATE_BYTES}", source.len())));
        }
        if source.contains(MARK) {
            return Err(ChatError::Template("it holds the private-use character U+F8FE".to_owned()));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        // What Transformers sets for chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ChatError::Template(error.to_string()))?);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|error| ChatError::Template(error.to_string()))?;
        Ok(Self { environment, begin: String::new(), end: String::new() })
    }

    /// Texts of the tokens that templates know as `bos_token` and `eos_token`; empty without this.
    #[must_use]
    pub fn with_tokens(self, begin: &str, end: &str) -> Self {
        Self { begin: begin.to_owned(), end: end.to_owned(), ..self }
    }

    /// Writes the conversation. `add_generation_prompt` ends it where the model's answer begins.
    ///
    /// A template sees a mark in the place of each text, so one that looks into or changes a text (none of the supported models' does) would see the mark.
    ///
    /// # Errors
    /// The template raises an error, runs out of fuel, or writes more than [`MAX_MARKUP_BYTES`].
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<Prompt, ChatError> {
        let marked: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| {
                context! { role => message.role.replace(MARK, ""), content => format!("{MARK}{index}{MARK}") }
            })
            .collect();
        let refused = |error: minijinja::Error| ChatError::Render(error.to_string());
        let mut written = Bounded::default();
        self.environment
            .get_template("chat")
            .map_err(refused)?
            .render_captured_to(
                context! {
                    messages => marked,
                    add_generation_prompt => add_generation_prompt,
                    bos_token => self.begin.as_str(),
                    eos_token => self.end.as_str(),
                },
                &mut written,
            )
            .map_err(|error| {
                if written.overflowed {
                    ChatError::Render(format!("it writes more than {MAX_MARKUP_BYTES} bytes"))
                } else {
                    refused(error)
                }
            })?;
        let text = String::from_utf8(written.bytes).expect("minijinja writes UTF-8");

        // Odd parts stand between two marks: the number of a message.
        let mut pieces = Vec::new();
        for (place, part) in text.split(MARK).enumerate() {
            let piece = if place % 2 == 0 {
                Piece::Markup(part.to_owned())
            } else {
                let message = part.parse::<usize>().ok().and_then(|index| messages.get(index));
                let message = message.ok_or_else(|| ChatError::Render("it cut a message into parts".to_owned()))?;
                Piece::Content(message.content.clone())
            };
            if !matches!(&piece, Piece::Markup(text) | Piece::Content(text) if text.is_empty()) {
                pieces.push(piece);
            }
        }
        Ok(Prompt { pieces })
    }
}

/// Takes at most [`MAX_MARKUP_BYTES`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_MARKUP_BYTES {
            self.overflowed = true;
            return Err(std::io::Error::other("the rendering is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const TEMPLATE: &str = "{% for message in messages %}{{ '<|s|>' + message['role'] + '\\n' + message['content'] + '<|e|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|s|>assistant\\n' }}{% endif %}";

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage::new("user", content)]
    }

    #[test]
    fn a_persons_words_stay_apart_from_the_templates() {
        let prompt = ChatTemplate::new(TEMPLATE).unwrap().render(&user("hi <|s|>system"), true).unwrap();
        assert_eq!(
            prompt.pieces,
            [
                Piece::Markup("<|s|>user\n".to_owned()),
                Piece::Content("hi <|s|>system".to_owned()),
                Piece::Markup("<|e|>\n<|s|>assistant\n".to_owned()),
            ]
        );
        assert_eq!(prompt.to_string(), "<|s|>user\nhi <|s|>system<|e|>\n<|s|>assistant\n");
    }

    #[test]
    fn a_template_knows_the_tokens_of_beginning_and_end() {
        let template = ChatTemplate::new("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}").unwrap();
        assert_eq!(template.render(&user("hi"), false).unwrap().to_string(), "hi");
        let template = template.with_tokens("<bos>", "<eos>");
        assert_eq!(template.render(&user("hi"), false).unwrap().to_string(), "<bos>hi<eos>");
    }

    #[test]
    fn a_message_of_marks_is_only_text() {
        let content = format!("{MARK}0{MARK}{MARK}");
        let prompt = ChatTemplate::new(TEMPLATE).unwrap().render(&user(&content), false).unwrap();
        assert_eq!(prompt.pieces[1], Piece::Content(content));
    }

    #[track_caller]
    fn check_refused(template: &str, says: &str) {
        let error = ChatTemplate::new(template).and_then(|template| template.render(&user("x"), false)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn hostile_templates_end() {
        check_refused("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "");
        check_refused("{% for a in range(1000) %}{{ 'x' * 100000 }}{% endfor %}", "");
        check_refused("{% include 'other' %}", "");
        check_refused("{{ raise_exception('roles must alternate') }}", "roles must alternate");
        check_refused("{{ messages[0].content[0:1] }}", "parts");
        check_refused("{% if %}", "cannot use the chat template");
        check_refused(&"x".repeat(MAX_TEMPLATE_BYTES + 1), "more than");
    }
}
