//! A client of our own server, as the demo and the bench use it: plain HTTP through `reqwest`, nothing that another client could not do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// Longer than any deadline that a server of ours is given.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A server that speaks the OpenAI protocol, and the receipts of metier.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

/// One answered request.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The answer; `None` when it was refused.
    pub content: Option<String>,
    /// Why it was refused.
    pub refusal: Option<String>,
    /// Who answered.
    pub model: String,
    /// `x-metier-decision`.
    pub decision: String,
    /// `x-metier-stage`.
    pub stage: String,
    /// `x-metier-escalated`: `no`, `llm`, `none-available`, `denied`.
    pub escalated: String,
    /// The task that `auto` found, or that was named.
    pub task: Option<String>,
    /// `x-metier-cost-usd`; `None` when unpriced.
    pub cost_usd: Option<f64>,
    /// `x-metier-receipt`.
    pub receipt: Option<String>,
    /// Tokens read and written.
    pub tokens: (u64, u64),
    /// From sending to the last byte.
    pub elapsed: Duration,
}

impl Client {
    /// A client of the server at `http://…`, without `/v1`.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .timeout(TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self { http, url: url.to_owned() })
    }

    /// One chat completion over one user message. `max_tokens` bounds an LLM; a specialist answers with its label.
    ///
    /// # Errors
    /// The server cannot be reached, or answers with an error.
    pub async fn chat(&self, model: &str, text: &str, max_tokens: u32) -> anyhow::Result<Reply> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
        });
        let begun = Instant::now();
        let response = self
            .http
            .post(format!("{}/v1/chat/completions", self.url))
            .json(&body)
            .send()
            .await
            .with_context(|| format!("cannot ask `{model}` at {}", self.url))?;
        let status = response.status();
        let headers = response.headers().clone();
        let body: Value = response.json().await.with_context(|| format!("the answer of `{model}` broke off"))?;
        let elapsed = begun.elapsed();
        if !status.is_success() {
            let message = body["error"]["message"].as_str().unwrap_or("without a message");
            bail!("`{model}` answered {status}: {message}");
        }
        let message = &body["choices"][0]["message"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Reply {
            content: text(&message["content"]),
            refusal: text(&message["refusal"]),
            model: text(&body["model"]).unwrap_or_default(),
            decision: header(&headers, "x-metier-decision").unwrap_or_default(),
            stage: header(&headers, "x-metier-stage").unwrap_or_default(),
            escalated: header(&headers, "x-metier-escalated").unwrap_or_default(),
            task: text(&body["metier"]["task"]),
            cost_usd: header(&headers, "x-metier-cost-usd").and_then(|text| text.parse().ok()),
            receipt: header(&headers, "x-metier-receipt"),
            tokens: (
                body["usage"]["prompt_tokens"].as_u64().unwrap_or(0),
                body["usage"]["completion_tokens"].as_u64().unwrap_or(0),
            ),
            elapsed,
        })
    }

    /// The text at a path, as `/admin/v1/receipts/ID`.
    ///
    /// # Errors
    /// The server cannot be reached, or answers with an error.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        let response = response.with_context(|| format!("cannot get {path} from {}", self.url))?;
        let status = response.status();
        let body = response.text().await.with_context(|| format!("{path} broke off"))?;
        if !status.is_success() {
            bail!("{path} answered {status}: {body}");
        }
        Ok(body)
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The value below which a share `q` of the values lies (nearest rank); `None` without values.
pub fn quantile(values: &[Duration], q: f64) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<_> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&values, 0.5), Some(Duration::from_millis(10)));
        assert_eq!(quantile(&values, 0.95), Some(Duration::from_millis(19)));
        assert_eq!(quantile(&values, 1.0), Some(Duration::from_millis(20)));
        assert_eq!(quantile(&values[..1], 0.01), Some(Duration::from_millis(20)));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
