//! What is wrong with PEM, in words that hold nothing of it: the library's own tell the lines that they stopped at, and of
//! a key without line feeds that is the key.

use rustls_pki_types::pem::Error;

/// Why a text is no PEM.
#[must_use]
pub fn problem(error: &Error) -> &'static str {
    match error {
        Error::MissingSectionEnd { .. } => "a section of PEM has no end",
        Error::IllegalSectionStart { .. } => "a section of PEM begins wrong; are its line feeds there?",
        Error::Base64Decode(_) => "a section of PEM is not base64",
        Error::Io(_) => "it cannot be read",
        Error::NoItemsFound => "it holds no such section of PEM",
        Error::SectionTooLarge => "a section of PEM is too large",
        _ => "it is not PEM",
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivateKeyDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    // spec: GW-114
    #[test]
    fn a_key_that_lost_its_line_feeds_is_not_told() {
        for text in [
            "-----BEGIN PRIVATE KEY----- SECRET -----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY---- SECRET",
            "-----BEGIN PRIVATE KEY-----\nSECRET",
            "-----BEGIN PRIVATE KEY-----\nSECRE*\n-----END PRIVATE KEY-----\n",
            "SECRET",
        ] {
            let error = PrivateKeyDer::from_pem_slice(text.as_bytes()).expect_err("no key");
            let told = problem(&error);
            assert!(!told.contains("SECRE") && !told.contains("83, 69"), "{told}");
        }
    }
}
