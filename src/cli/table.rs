//! Aligned columns, sizes and times for people.

/// Rows of cells under a heading, in columns as wide as their widest cell. The last column is not
/// padded. Numbers stand to the right: columns whose heading begins with a space.
pub(super) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub(super) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, of as many cells as there are headings. Control characters, which an image's author
    /// could have put there, become question marks.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let clean = |cell: String| cell.replace(char::is_control, "?");
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// All of it, each line ended.
    pub(super) fn text(&self) -> String {
        let heads: Vec<String> = self
            .heads
            .iter()
            .map(|h| h.trim_start().to_owned())
            .collect();
        let all = || std::iter::once(&heads).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let mut text = String::new();
        for row in all() {
            let mut line = String::new();
            for ((cell, head), width) in row.iter().zip(&self.heads).zip(&widths) {
                let cell = match head.starts_with(' ') {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                };
                line = line + &cell + "  ";
            }
            text = text + line.trim_end() + "\n";
        }
        text
    }
}

/// Bytes with a unit that fits, in powers of ten.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let size = bytes as f64;
    let unit = units.iter().find(|(_, unit)| size >= *unit);
    match unit {
        Some((name, unit)) => format!("{:.1} {name}", size / unit),
        None => format!("{bytes} B"),
    }
}

/// A span of time, to one unit.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The beginning of a digest: as much as tells layers apart.
pub(super) fn short(digest: &str) -> String {
    match digest {
        "" => "?".to_owned(),
        digest => digest.chars().take("sha256:".len() + 12).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", " BYTES", "WHY"]);
        table.row(vec!["a".into(), "7".into(), "x".into()]);
        table.row(vec!["longer".into(), "1234567".into(), "a\x1b[2Jb".into()]);
        let want = "NAME      BYTES  WHY\na             7  x\nlonger  1234567  a?[2Jb\n";
        assert_eq!(table.text(), want);
    }

    #[test]
    fn sizes_and_times_have_a_unit_that_fits() {
        for (size, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_234_567, "1.2 MB"),
            (20 << 30, "21.5 GB"),
        ] {
            assert_eq!(bytes(size), text);
        }
        assert_eq!((span(119), span(120)), ("119 s".into(), "2 min".into()));
        assert_eq!(
            (span(7_200), span(172_800)),
            ("2 h".into(), "2 days".into())
        );
    }
}
