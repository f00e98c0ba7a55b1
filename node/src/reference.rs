//! The reference pages, generated from what the program itself uses, so that they cannot be wrong.

pub mod config;
pub mod errors;
pub mod metrics;

/// A cell of a Markdown table: one line, and no bar of its own.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn row(cells: &[&str]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_in_docs_are_what_the_program_says() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference");
        let pages = [("config", config::markdown()), ("metrics", metrics::markdown()), ("errors", errors::markdown())];
        for (name, generated) in pages {
            let file = format!("{folder}/{name}.md");
            let written = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(
                written.trim_end() == generated.trim_end(),
                "docs/reference/{name}.md is out of date; run: cargo run -- reference {name} > docs/reference/{name}.md"
            );
        }
    }

    #[test]
    fn a_cell_stays_in_its_table() {
        assert_eq!(cell("one\n  two | three"), "one two \\| three");
    }
}
