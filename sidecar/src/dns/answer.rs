//! Answers for names that the mesh knows.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use super::forward::{Transport, question_end};

/// What becomes of a message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is no query.
    Ignore,
    /// The answer.
    Answer(Vec<u8>),
    /// A server answers.
    Forward {
        /// Longest answer that the client takes, in bytes.
        limit: usize,
    },
}

/// Looks at a message of a client. `addresses` gives those of a name (lower case, without a final dot) that the mesh
/// knows, of both families, and `None` for all other names.
///
/// What this does not understand, be it malformed or newer, is for a server to judge.
pub fn decide(message: &[u8], transport: Transport, addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Decision {
    let is_query = message.len() >= HEADER && message.get(2).is_some_and(|flags| flags & RESPONSE == 0);
    if !is_query {
        return Decision::Ignore;
    }
    let Ok(query) = Message::from_vec(message) else {
        let limit = transport.limit(None);
        return Decision::Forward { limit };
    };
    let limit = transport.limit(query.edns.as_ref().map(Edns::max_payload));
    match answer(&query, limit, addresses) {
        Some(answer) => Decision::Answer(answer),
        None => Decision::Forward { limit },
    }
}

fn answer(query: &Message, limit: usize, addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Option<Vec<u8>> {
    let [question] = &query.queries[..] else { return None };
    let is_plain = query.metadata.message_type == MessageType::Query
        && query.metadata.op_code == OpCode::Query
        && question.query_class() == DNSClass::IN
        && query.edns.as_ref().is_none_or(|edns| edns.version() == 0);
    if !is_plain || !is_answered(question.query_type()) {
        return None;
    }
    let name = question.name().to_ascii().to_ascii_lowercase();
    let addresses = addresses(name.strip_suffix('.').unwrap_or(&name))?;
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.authoritative = true;
    answer.metadata.recursion_available = true;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.checking_disabled = query.metadata.checking_disabled;
    answer.add_query(question.clone());
    let records = addresses.into_iter().filter_map(|address| record(question, address));
    answer.add_answers(records.take(MAX_RECORDS));
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MOST);
        answer.set_edns(edns);
    }
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    answer.truncate().to_vec().ok()
}

/// Types of records that a name of the mesh has, or must not have from elsewhere: HTTPS and SVCB name addresses that
/// would lead past the mesh's.
fn is_answered(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::A | RecordType::AAAA | RecordType::ANY | RecordType::HTTPS | RecordType::SVCB
    )
}

fn record(question: &Query, address: IpAddr) -> Option<Record> {
    let (kind, data) = match address {
        IpAddr::V4(v4) => (RecordType::A, RData::A(A(v4))),
        IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(v6))),
    };
    let is_asked = [kind, RecordType::ANY].contains(&question.query_type());
    is_asked.then(|| Record::from_rdata(question.name().clone(), TTL_SECONDS, data))
}

/// The answer that there is none: SERVFAIL.
pub(super) fn failure(query: &[u8]) -> Vec<u8> {
    bare(query, SERVFAIL, 0)
}

/// The answer that the real one is too long: the client asks again over TCP.
pub(super) fn too_long(query: &[u8]) -> Vec<u8> {
    bare(query, 0, TRUNCATED)
}

/// A response of header and question alone, by hand: what it answers need not be well-formed.
fn bare(query: &[u8], code: u8, flags: u8) -> Vec<u8> {
    let end = question_end(query).unwrap_or(HEADER);
    let mut out: Vec<u8> = query.iter().copied().take(end).collect();
    out.resize(end.max(HEADER), 0);
    // Operation and "recursion desired" stay.
    out[2] = RESPONSE | flags | (out[2] & 0x79);
    out[3] = RECURSION_AVAILABLE | code;
    let questions = u16::from(end > HEADER);
    out[4..6].copy_from_slice(&questions.to_be_bytes());
    out[6..HEADER].fill(0);
    out
}

/// Length of a header (RFC 1035, section 4.1.1).
pub(super) const HEADER: usize = 12;
/// Bit of the third byte: a response.
pub(super) const RESPONSE: u8 = 0x80;
/// Bit of the third byte: cut.
pub(super) const TRUNCATED: u8 = 0x02;
/// Bit of the fourth byte.
const RECURSION_AVAILABLE: u8 = 0x80;
const SERVFAIL: u8 = 2;

/// Longest message over UDP that this end takes.
pub(super) const UDP_MOST: u16 = 4096;

/// How long a client may keep an answer: short, because endpoints come and go, and asking again costs next to nothing.
const TTL_SECONDS: u32 = 5;

/// Most records of an answer: more would not fit a message.
const MAX_RECORDS: usize = 2000;
