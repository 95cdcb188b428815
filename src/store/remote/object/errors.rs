//! What errors of servers mean.

use crate::base::error::{Error, ErrorKind};

/// What an error of a server means.
pub(super) fn failed(doing: &str, place: &str, error: object_store::Error) -> Error {
    use object_store::Error as Of;
    let (kind, why) = match &error {
        // Not that an object is missing.
        Of::NotFound { source, .. } if source.to_string().contains("NoSuchBucket") => {
            (ErrorKind::Io, said(source.as_ref()))
        }
        Of::NotFound { .. } => (ErrorKind::NotFound, "No such object".into()),
        Of::AlreadyExists { .. } | Of::Precondition { .. } => {
            (ErrorKind::AlreadyExists, "it already exists".into())
        }
        Of::PermissionDenied { source, .. } | Of::Unauthenticated { source, .. } => {
            (ErrorKind::Auth, said(source.as_ref()))
        }
        Of::NotImplemented { .. } | Of::NotSupported { .. } => {
            (ErrorKind::Unsupported, said(&error))
        }
        Of::Generic { source, .. } => {
            let why = said(source.as_ref());
            let is_final = is_final(&source.to_string());
            (if is_final { ErrorKind::Io } else { ErrorKind::Unavailable }, why)
        }
        _ => (ErrorKind::Io, said(&error)),
    };
    let error = Error::new(kind, format!("cannot {doing} {place}: {why}"));
    match kind {
        ErrorKind::Auth => error.hint("check the credentials and their permissions"),
        ErrorKind::Unavailable => error.hint("check that the server can be reached, and try again"),
        _ => error,
    }
}

/// True for an answer that no other attempt changes: the client says which one it was.
fn is_final(text: &str) -> bool {
    let code = text.split("status code: ").nth(1).and_then(|rest| rest.get(..3));
    let code: Option<u16> = code.and_then(|code| code.parse().ok());
    code.is_some_and(|code| (400..500).contains(&code) && ![408, 425, 429].contains(&code))
        // The times of both ends differ too much, or a certificate is nobody's.
        || text.contains("certificate")
}

/// The innermost cause of an error, or the message of an S3 server, in one line.
pub(super) fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let within = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let code = within("Code");
    if code.as_deref() == Some("NoSuchBucket") {
        return "no such bucket".into();
    }
    if let Some(message) = within("Message").filter(|message| !message.is_empty()).or(code) {
        return message;
    }
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let inner = last.to_string();
    let text = if inner.is_empty() { text } else { inner };
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_final_or_may_pass() {
        let text = |code: &str| format!("Server returned non-2xx status code: {code}: <Error/>");
        for code in ["400 Bad Request", "403 Forbidden", "405 Method Not Allowed"] {
            assert!(is_final(&text(code)), "{code}");
        }
        for code in ["429 Too Many Requests", "503 Slow Down", "500 Internal Server Error"] {
            assert!(!is_final(&text(code)), "{code}");
        }
        assert!(!is_final("connection reset by peer"));
    }
}
