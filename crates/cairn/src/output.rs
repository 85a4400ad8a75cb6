//! What commands print: a table for people, JSON for programs, nothing else.

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Default)]
pub(crate) enum Format {
    /// Columns.
    #[default]
    Table,
    /// One JSON value.
    Json,
}

/// Prints rows below a heading, aligned, without lines.
pub(crate) fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}", table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
}

/// Lines of cells, aligned to each other and to the widths of what was printed before, which grow with them.
pub(crate) fn aligned(lines: &[Vec<String>], widths: &mut Vec<usize>) -> String {
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        let padded = line.iter().zip(&*widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        text.push_str(padded.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Prints one JSON value.
pub(crate) fn json(value: &impl Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("what is printed is plain data"));
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn later_lines_stand_below_earlier_ones() {
        let line = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut widths = Vec::new();
        assert_eq!(
            aligned(&[line(["NAME", "STATUS"]), line(["data", "Bound"])], &mut widths),
            "NAME   STATUS\ndata   Bound\n"
        );
        assert_eq!(aligned(&[line(["d", "Lost"])], &mut widths), "d      Lost\n");
    }
}
