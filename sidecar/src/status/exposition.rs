//! In which of Prometheus' formats metrics are told (LIFE-063): text 0.0.4, or OpenMetrics 1.0.0 where it is asked for.

use hyper::header::{ACCEPT, HeaderMap, HeaderValue};

use crate::probe::Scraped;

/// How a document of metrics is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own text format.
    Text,
    /// Its successor.
    OpenMetrics,
}

impl Format {
    /// What a scraper asks for. Text, unless OpenMetrics in the version that is written here is as welcome.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let (mut open, mut text, mut any) = (0.0f32, None::<f32>, 0.0f32);
        for member in members(headers) {
            let Member { kind, version, quality } = member;
            match kind.as_str() {
                OPEN_METRICS if version.is_none_or(|v| v == "1.0.0") => open = open.max(quality),
                "text/plain" if version.is_none_or(|v| v == "0.0.4") => {
                    text = Some(text.unwrap_or(0.0).max(quality));
                }
                "text/*" | "*/*" => any = any.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= text.unwrap_or(any) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }
}

/// What the application is asked for: the scraper's wish, but for formats that nothing can be put in front of, such as
/// Prometheus' protobuf (PROM-009).
pub(super) fn passed_on(headers: &HeaderMap) -> Option<HeaderValue> {
    if !headers.contains_key(ACCEPT) {
        return None;
    }
    let kept: Vec<&str> = texts(headers)
        .filter(|text| {
            let kind = text.split(';').next().unwrap_or_default().trim();
            [OPEN_METRICS, "text/plain", "text/*", "*/*"]
                .iter()
                .any(|known| kind.eq_ignore_ascii_case(known))
        })
        .collect();
    let kept = if kept.is_empty() {
        "text/plain;version=0.0.4".to_owned()
    } else {
        kept.join(",")
    };
    HeaderValue::from_str(&kept).ok()
}

/// The proxy's own series, in text 0.0.4, as a document of a format.
pub(super) fn document(own: String, format: Format) -> (HeaderValue, String) {
    let document = match format {
        Format::Text => own,
        Format::OpenMetrics => open_metrics(&own) + END,
    };
    (format.content_type(), document)
}

/// The proxy's own series and the application's. An application that answers decides on the format, whatever was asked
/// for: its body passes as it is, so that the proxy's part must be what that is. Text in the place of OpenMetrics is
/// what every scraper reads; OpenMetrics is no text 0.0.4 (its timestamps are seconds, its exemplars an error there),
/// and must not be called so (PROM-009).
pub(super) fn merged(own: String, application: Option<Scraped>, wanted: Format) -> (HeaderValue, String) {
    match application {
        None => document(own, wanted),
        Some(Scraped::Text(body)) => (Format::Text.content_type(), own + &body),
        // Its end is the document's.
        Some(Scraped::OpenMetrics { kind, body }) => (kind, open_metrics(&own) + &body),
    }
}

/// Text of the proxy's own as OpenMetrics, without its end. A counter's family has the name of its sample without
/// `_total`, which is the name of no other kind here, and bounds of buckets are floating point numbers.
fn open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1024);
    for line in text.lines() {
        let described = line
            .strip_prefix("# TYPE ")
            .map(|rest| ("# TYPE ", rest))
            .or_else(|| line.strip_prefix("# HELP ").map(|rest| ("# HELP ", rest)));
        if let Some((word, rest)) = described {
            let (name, what) = rest.split_once(' ').unwrap_or((rest, ""));
            let family = name.strip_suffix("_total").unwrap_or(name);
            out.extend([word, family, " ", what]);
        } else if let Some((labels, bound, value)) = bucket(line) {
            out.extend([labels, bound, ".0", value]);
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// A sample of a bucket with a bound of digits alone: what is before the bound, the bound, what is behind it.
fn bucket(line: &str) -> Option<(&str, &str, &str)> {
    const BOUND: &str = ",le=\"";
    let at = line.rfind(BOUND)? + BOUND.len();
    let (labels, rest) = line.split_at(at);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (bound, value) = rest.split_at(digits);
    (digits > 0 && value.starts_with("\"}")).then_some((labels, bound, value))
}

/// One thing that a scraper accepts.
struct Member<'h> {
    kind: String,
    version: Option<&'h str>,
    quality: f32,
}

fn members(headers: &HeaderMap) -> impl Iterator<Item = Member<'_>> {
    texts(headers).map(|text| {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut member = Member {
            kind,
            version: None,
            quality: 1.0,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "version" => member.version = Some(value.trim().trim_matches('"')),
                // What is no number is no wish.
                "q" => member.quality = value.trim().parse().unwrap_or(0.0),
                _ => {}
            }
        }
        member
    })
}

fn texts(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(ACCEPT).into_iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The media type of OpenMetrics.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text";

/// What ends a document of OpenMetrics.
const END: &str = "# EOF\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))])
    }

    // spec: LIFE-063
    #[test]
    fn open_metrics_is_told_to_who_asks_for_it_before_text() {
        for (accept, open) in [
            ("application/openmetrics-text; version=1.0.0", true),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text;version=\"1.0.0\";q=0.5, */*;q=0.1", true),
            // Prometheus 2 and 3, the latter with native histograms.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;\
                 escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                true,
            ),
            ("application/openmetrics-text;version=0.0.1", false),
            ("application/openmetrics-text;version=1.0.0;q=0", false),
            ("application/openmetrics-text;version=1.0.0;q=x", false),
            ("application/openmetrics-text;q=0.3,text/plain;q=0.5", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
        ] {
            let wanted = Format::wanted(&accepting(accept));
            assert_eq!(wanted == Format::OpenMetrics, open, "{accept}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Text);
    }

    // spec: PROM-009
    #[test]
    fn the_application_is_asked_for_what_can_be_merged() {
        let passed = |accept| passed_on(&accepting(accept)).expect("a wish");
        assert_eq!(
            passed("application/vnd.google.protobuf;q=0.7, application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1"),
            "application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1"
        );
        assert_eq!(passed("application/vnd.google.protobuf"), "text/plain;version=0.0.4");
        assert_eq!(passed_on(&HeaderMap::new()), None);
    }

    // spec: LIFE-063
    #[test]
    fn counters_are_families_without_their_suffix_and_bounds_are_floats() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"# TYPE x_total\"} 3\n# TYPE h histogram\n\
                    h_bucket{b=\",le=\\\"1\",le=\"0.5\"} 1\nh_bucket{b=\"\",le=\"10\"} 2\nh_bucket{b=\"\",le=\"+Inf\"} 2\n\
                    h_sum{b=\"\"} 1\nh_count{b=\"\"} 2\n";
        let open = "# HELP a Things.\n# TYPE a counter\na_total{b=\"# TYPE x_total\"} 3\n# TYPE h histogram\n\
                    h_bucket{b=\",le=\\\"1\",le=\"0.5\"} 1\nh_bucket{b=\"\",le=\"10.0\"} 2\nh_bucket{b=\"\",le=\"+Inf\"} \
                    2\nh_sum{b=\"\"} 1\nh_count{b=\"\"} 2\n";
        assert_eq!(
            document(text.to_owned(), Format::OpenMetrics).1,
            format!("{open}# EOF\n")
        );
        assert_eq!(document(text.to_owned(), Format::Text).1, text);
    }
}
