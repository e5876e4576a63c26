//! Which authority signs while another one takes its place: a new root is known everywhere before anything is signed by
//! it, and the old one stays known until nothing that it signed is in use (DLV-104, ID-064).
//!
//! Nothing of this is stored. What a new leader does not know is how long a root has been known: it waits again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_bundle::anchors;
use weft_bundle::pack::Files;

use crate::identity::Authority;

/// What the choice depends on.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The authority that is asked for.
    pub wanted: &'a Arc<Authority>,
    /// The one in whose place it comes, while its Secret is there.
    pub before: Option<Arc<Authority>>,
    /// Contents of the identity Secrets.
    pub secrets: &'a [&'a Files],
    /// Every pod has the trust bundle that was written last, as far as pods answer.
    pub acknowledged: bool,
    /// Lifetime of leaves.
    pub ttl: Duration,
}

/// Who signs, and what is trusted.
#[derive(Debug)]
pub struct Choice {
    /// Signs leaves.
    pub signer: Arc<Authority>,
    /// Roots of all authorities whose leaves may be in use, in PEM.
    pub roots: String,
    /// What is waited for asks to be looked at again.
    pub waits: bool,
}

/// One authority after another.
#[derive(Debug, Default)]
pub struct Succession {
    signer: Option<Arc<Authority>>,
    /// Since when every Secret has the roots of the one to come.
    known: Option<Instant>,
    /// Roots of the one before, and until when leaves that it signed may be in use.
    retiring: Option<(String, Instant)>,
}

impl Succession {
    /// Chooses.
    pub fn choose(&mut self, facts: &Facts<'_>, now: Instant) -> Choice {
        let wanted = facts.wanted;
        if self.signer.is_none() {
            self.begin(facts, now);
        }
        let signer = self.signer.clone().unwrap_or_else(|| wanted.clone());
        let signer = if signer.cert_pem() == wanted.cert_pem() {
            self.known = None;
            wanted.clone()
        } else if has_roots(&signer, wanted.roots_pem()) {
            // Its root is known already (ID-047).
            self.known = None;
            wanted.clone()
        } else {
            let is_known = facts.secrets.iter().all(|files| has_all(files, wanted.roots_pem()));
            self.known = is_known.then(|| self.known.unwrap_or(now));
            let is_old = self
                .known
                .is_some_and(|since| now.saturating_duration_since(since) >= AGE);
            if is_old && facts.acknowledged {
                tracing::info!("the new authority signs");
                self.retiring = Some((signer.roots_pem().to_owned(), now + facts.ttl + AGE));
                self.known = None;
                wanted.clone()
            } else {
                signer
            }
        };
        self.signer = Some(signer.clone());
        self.retiring.take_if(|(_, until)| *until <= now);
        let mut roots = signer.roots_pem().to_owned();
        let waits = signer.cert_pem() != wanted.cert_pem();
        for more in [
            waits.then(|| wanted.roots_pem()),
            self.retiring.as_ref().map(|(roots, _)| roots.as_str()),
        ] {
            roots.push('\n');
            roots.push_str(more.unwrap_or_default());
        }
        Choice {
            signer,
            roots,
            waits: waits || self.retiring.is_some(),
        }
    }

    /// After a start: whoever signed the leaves that are there goes on.
    fn begin(&mut self, facts: &Facts<'_>, now: Instant) {
        let Some(before) = &facts.before else { return };
        let is_before = |files: &Files| before.has_signed(files) && !facts.wanted.has_signed(files);
        if facts.secrets.iter().any(|files| is_before(files)) {
            self.signer = Some(before.clone());
        } else if facts.secrets.iter().any(|files| has_all(files, before.roots_pem())) {
            self.retiring = Some((before.roots_pem().to_owned(), now + facts.ttl + AGE));
        }
    }
}

/// Whether an authority's roots include those of another one.
fn has_roots(authority: &Authority, roots: &str) -> bool {
    let own = anchors::parse(authority.roots_pem());
    anchors::parse(roots)
        .iter()
        .all(|root| own.iter().any(|known| known.pem == root.pem))
}

/// Whether a Secret's trust bundle includes roots.
fn has_all(files: &Files, roots: &str) -> bool {
    let bundle = files
        .get("root-cert.pem")
        .map(|bytes| String::from_utf8_lossy(bytes))
        .unwrap_or_default();
    let bundle = anchors::parse(&bundle);
    anchors::parse(roots)
        .iter()
        .all(|root| bundle.iter().any(|known| known.pem == root.pem))
}

/// How old a root is before it signs, and how long one stays beyond the leaves that it signed (ID-064).
const AGE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::{Profile, SpiffeId, secret};
    use crate::trust;

    fn authority() -> Arc<Authority> {
        Arc::new(Authority::generate("cluster.local", SystemTime::now()).expect("authority"))
    }

    /// A Secret as a choice has it written.
    fn written(choice: &Choice) -> Files {
        let id = SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        };
        let leaf = choice
            .signer
            .issue(&id, &Profile::default(), SystemTime::now())
            .expect("leaf");
        secret(&leaf, &trust::bundle(&choice.roots, &weft_crds::MeshConfig::default()))
    }

    fn names(choice: &Choice, all: &[(&'static str, &Arc<Authority>)]) -> (Vec<&'static str>, &'static str) {
        let is = |one: &Authority, other: &Authority| one.cert_pem() == other.cert_pem();
        let trusted = all.iter().filter(|(_, a)| has_all(&written(choice), a.roots_pem()));
        let signer = all.iter().find(|(_, a)| is(a, &choice.signer)).expect("one of them");
        (trusted.map(|(name, _)| *name).collect(), signer.0)
    }

    const TTL: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    // spec: DLV-104
    #[test]
    fn a_new_root_is_known_and_acknowledged_and_ten_minutes_old_before_it_signs() {
        let (old, new) = (authority(), authority());
        let all = [("old", &old), ("new", &new)];
        let mut now = Instant::now();
        let mut succession = Succession::default();
        let mut choose = |wanted: &Arc<Authority>, secrets: &[&Files], acknowledged: bool, now: Instant| {
            let before = Arc::ptr_eq(wanted, &new).then(|| old.clone());
            let facts = Facts {
                wanted,
                before,
                secrets,
                acknowledged,
                ttl: TTL,
            };
            succession.choose(&facts, now)
        };
        let first = choose(&old, &[], true, now);
        assert_eq!(names(&first, &all), (vec!["old"], "old"));
        let alone = written(&first);
        let joint = choose(&new, &[&alone], true, now);
        assert_eq!(
            names(&joint, &all),
            (vec!["old", "new"], "old"),
            "both are trusted, the old one signs"
        );
        let both = written(&joint);
        // One Secret of many does not have it yet: the time has not begun.
        now += AGE * 2;
        assert_eq!(names(&choose(&new, &[&both, &alone], true, now), &all).1, "old");
        assert_eq!(names(&choose(&new, &[&both, &both], true, now), &all).1, "old");
        now += AGE - MINUTE;
        assert_eq!(
            names(&choose(&new, &[&both, &both], true, now), &all).1,
            "old",
            "not old enough"
        );
        now += MINUTE * 2;
        assert_eq!(
            names(&choose(&new, &[&both, &both], false, now), &all).1,
            "old",
            "not everywhere"
        );
        let signing = choose(&new, &[&both, &both], true, now);
        assert_eq!(names(&signing, &all), (vec!["old", "new"], "new"));
        // What the old one has signed may be in use for as long as leaves last.
        let fresh = written(&signing);
        now += TTL;
        assert_eq!(names(&choose(&new, &[&fresh], true, now), &all).0, ["old", "new"]);
        now += AGE + MINUTE;
        let last = choose(&new, &[&fresh], true, now);
        assert_eq!(names(&last, &all), (vec!["new"], "new"));
        assert!(!last.waits);
    }

    // spec: DLV-104
    #[test]
    fn a_new_leader_goes_on_where_the_secrets_are() {
        let (old, new) = (authority(), authority());
        let all = [("old", &old), ("new", &new)];
        let now = Instant::now();
        let choice = |signer: &Arc<Authority>, roots: &[&Arc<Authority>]| Choice {
            signer: signer.clone(),
            roots: roots.iter().map(|a| a.roots_pem()).collect(),
            waits: false,
        };
        for (found, expected) in [
            (choice(&old, &[&old]), (vec!["old", "new"], "old")),
            (choice(&old, &[&old, &new]), (vec!["old", "new"], "old")),
            (choice(&new, &[&old, &new]), (vec!["old", "new"], "new")),
            (choice(&new, &[&new]), (vec!["new"], "new")),
        ] {
            let found = written(&found);
            let facts = Facts {
                wanted: &new,
                before: Some(old.clone()),
                secrets: &[&found],
                acknowledged: true,
                ttl: TTL,
            };
            assert_eq!(names(&Succession::default().choose(&facts, now), &all), expected);
        }
    }
}
