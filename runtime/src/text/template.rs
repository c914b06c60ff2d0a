//! Chat templates: Jinja as the `transformers` library renders it.

use super::{TextError, special};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// What `role` said.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_string(), content: content.to_string() }
    }
}

/// A compiled template.
pub struct Template {
    environment: Environment<'static>,
}

const NAME: &str = "chat";

impl Template {
    /// Compiles `source`; special tokens are taken from the tokenizer's configuration.
    pub fn new(source: String, config: &serde_json::Value) -> Result<Template, TextError> {
        let mut environment = Environment::new();
        // As `transformers` sets them: Python's methods on values, no blank lines left by blocks.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        for field in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = special(config, field) {
                environment.add_global(field, token);
            }
        }
        environment.add_template_owned(NAME, source).map_err(failed)?;
        Ok(Template { environment })
    }

    /// The prompt for `messages`, ending where the model's turn begins.
    pub fn render(&self, messages: &[Message]) -> Result<String, TextError> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let turn = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        template.render(context! { messages, add_generation_prompt => true }).map_err(failed)
    }
}

fn failed(error: Error) -> TextError {
    let line = error.line().map_or(String::new(), |l| format!(" (line {l})"));
    TextError::Template { message: format!("{error}{line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TextError> {
        let config = serde_json::json!({ "bos_token": "<b>", "eos_token": { "content": "<e>" } });
        Template::new(source.to_string(), &config)?.render(messages)
    }

    #[test]
    fn what_templates_of_this_family_use() {
        let source = "{% set ns = namespace(first=true, system='') %}
{% for m in messages %}
    {%- if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endif %}
{% endfor %}
{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}<U>{{ m.content.strip() }}{% set ns.first = false %}
{%- elif m.role == 'assistant' %}<A>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not tools is defined %}<A>{% endif %}";
        let turns = [
            Message::new("system", "Be kind."),
            Message::new("user", " Hello "),
            Message::new("assistant", "hm</think>Hi"),
            Message::new("user", "Bye"),
        ];
        assert_eq!(render(source, &turns).unwrap(), "<b>Be kind.<U>Hello<A>Hi<e><U>Bye<A>");
    }

    #[test]
    fn templates_can_refuse_and_be_broken() {
        let refused = render("{{ raise_exception('no system message') }}", &[]).unwrap_err().to_string();
        assert!(refused.contains("no system message"), "{refused}");
        let broken = render("{% if %}", &[]).unwrap_err().to_string();
        assert!(broken.starts_with("chat template: ") && broken.contains("line 1"), "{broken}");
        assert!(render("{{ messages[0].content.no_such_method() }}", &[Message::new("user", "x")]).is_err());
    }
}
