//! What a command prints. Logs are not written here.

use std::io::{self, Write};

/// Writes a line to standard output. A reader that has gone away (`| head`) has seen what it wanted: that is success.
pub fn line(text: &str) -> io::Result<()> {
    write(io::stdout().lock(), text)
}

/// Writes a line to standard error. Nothing can be done when that fails.
pub fn complaint(text: &str) {
    let _unheard = write(io::stderr().lock(), text);
}

fn write(mut to: impl Write, text: &str) -> io::Result<()> {
    let written = writeln!(to, "{}", text.strip_suffix('\n').unwrap_or(text)).and_then(|()| to.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_ends_with_one_line_break() {
        let mut out = Vec::new();
        write(&mut out, "one").unwrap();
        write(&mut out, "two\n").unwrap();
        assert_eq!(out, b"one\ntwo\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        assert!(write(Failing(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write(Failing(io::ErrorKind::StorageFull), "x").is_err());
    }
}
