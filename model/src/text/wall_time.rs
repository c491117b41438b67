//! A moment as a chat template shows it: `strftime_now("%d %B %Y")`.
//!
//! Pure: the moment and the offset from UTC are passed in, so that a prompt can be made again exactly.
//! The specifiers are those of Python's `strftime` in the C locale with a naive local time, because the
//! models were trained on prompts that it wrote.

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// 400 Gregorian years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// A pad width beyond this is a mistake of the template.
const WIDTH_MAX: usize = 64;

/// A civil date and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    year: i64,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    /// 1 to 366.
    day_of_year: u32,
    /// 0 is Sunday.
    weekday: u32,
    hour: u32,
    minute: u32,
    second: u32,
    unix_seconds: i64,
}

impl WallTime {
    /// The moment `unix_seconds` after 1970 in UTC, shown by a clock that is `utc_offset_seconds` ahead.
    pub fn from_unix(unix_seconds: i64, utc_offset_seconds: i32) -> WallTime {
        // Held within some thousand years, so that nothing below can overflow.
        let unix_seconds = unix_seconds.clamp(-100_000_000_000, 200_000_000_000);
        let local = unix_seconds + i64::from(utc_offset_seconds.clamp(-86_400, 86_400));
        let (days, seconds) = (local.div_euclid(86_400), local.rem_euclid(86_400) as u32);

        // Years are counted from March, so that the leap day is the last of its year.
        let since_march_0 = days + 719_468;
        let era = since_march_0.div_euclid(DAYS_PER_ERA);
        let day_of_era = since_march_0.rem_euclid(DAYS_PER_ERA);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let day = (day_of_march_year - (153 * march_month + 2) / 5 + 1) as u32;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);

        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        let day_of_year = before + day + u32::from(is_leap(year) && month > 2);
        WallTime {
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 4).rem_euclid(7) as u32,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            unix_seconds,
        }
    }

    /// Formats as Python's `datetime.strftime`. What is no specifier stays as it is.
    pub fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                out.push(char);
                continue;
            }
            // `%`, flags, width, then one letter; if no letter follows, all of it is plain text.
            let rest = chars.as_str();
            let flags_end = rest.find(|c| !"-_0^#".contains(c)).unwrap_or(rest.len());
            let (flags, rest) = rest.split_at(flags_end);
            let width_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (width, rest) = rest.split_at(width_end);
            let mut after = rest.chars();
            let field = after.next().and_then(|letter| self.field(letter));
            let Some((text, pad, natural_width)) = field else {
                out.push('%');
                continue;
            };
            chars = after;
            let pad = match flags.chars().rfind(|flag| "-_0".contains(*flag)) {
                Some('-') => None,
                Some('_') => Some(' '),
                Some(_) => Some('0'),
                None => Some(pad),
            };
            let width = width.parse::<usize>().unwrap_or(natural_width).min(WIDTH_MAX);
            let missing = width.saturating_sub(text.chars().count());
            out.extend(pad.into_iter().flat_map(|pad| std::iter::repeat_n(pad, missing)));
            if flags.contains('^') {
                out.push_str(&text.to_uppercase());
            } else {
                out.push_str(&text);
            }
        }
        out
    }

    /// The text of one specifier, and how it is padded.
    fn field(&self, letter: char) -> Option<(String, char, usize)> {
        let number = |value: i64, width| Some((value.to_string(), '0', width));
        let blank = |value: i64, width| Some((value.to_string(), ' ', width));
        let text = |text: &str| Some((text.to_owned(), ' ', 0));
        let whole = |format: &str| Some((self.format(format), ' ', 0));
        let hour_12 = i64::from((self.hour + 11) % 12 + 1);
        let (weekday, day_of_year) = (i64::from(self.weekday), i64::from(self.day_of_year));
        match letter {
            'Y' => Some((self.year.to_string(), '0', 0)),
            'C' => number(self.year.div_euclid(100), 2),
            'y' => number(self.year.rem_euclid(100), 2),
            'm' => number(self.month.into(), 2),
            'd' => number(self.day.into(), 2),
            'e' => blank(self.day.into(), 2),
            'j' => number(day_of_year, 3),
            'H' => number(self.hour.into(), 2),
            'k' => blank(self.hour.into(), 2),
            'I' => number(hour_12, 2),
            'l' => blank(hour_12, 2),
            'M' => number(self.minute.into(), 2),
            'S' => number(self.second.into(), 2),
            'f' => number(0, 6),
            's' => number(self.unix_seconds, 0),
            'u' => number((weekday + 6) % 7 + 1, 1),
            'w' => number(weekday, 1),
            'U' => number((day_of_year + 6 - weekday) / 7, 2),
            'W' => number((day_of_year + 6 - (weekday + 6) % 7) / 7, 2),
            'G' => Some((self.iso_week().0.to_string(), '0', 0)),
            'g' => number(self.iso_week().0.rem_euclid(100), 2),
            'V' => number(self.iso_week().1, 2),
            'a' => text(&DAYS[self.weekday as usize][..3]),
            'A' => text(DAYS[self.weekday as usize]),
            'b' | 'h' => text(&MONTHS[self.month as usize - 1][..3]),
            'B' => text(MONTHS[self.month as usize - 1]),
            'p' => text(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => text(if self.hour < 12 { "am" } else { "pm" }),
            // A naive time has no zone.
            'z' | 'Z' => text(""),
            'n' => text("\n"),
            't' => text("\t"),
            '%' => text("%"),
            'c' => whole("%a %b %e %H:%M:%S %Y"),
            'D' | 'x' => whole("%m/%d/%y"),
            'F' => whole("%Y-%m-%d"),
            'R' => whole("%H:%M"),
            'r' => whole("%I:%M:%S %p"),
            'T' | 'X' => whole("%H:%M:%S"),
            _ => None,
        }
    }

    /// The year and week of ISO 8601: a week belongs to the year that has its Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let monday_based = (i64::from(self.weekday) + 6) % 7;
        let week = (i64::from(self.day_of_year) - 1 - monday_based + 10) / 7;
        if week < 1 {
            return (self.year - 1, iso_weeks(self.year - 1));
        }
        if week > iso_weeks(self.year) { (self.year + 1, 1) } else { (self.year, week) }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// 53 where the year begins on a Thursday, or on a Wednesday before a leap day; else 52.
fn iso_weeks(year: i64) -> i64 {
    let last_weekday =
        |year: i64| (year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400)).rem_euclid(7);
    if last_weekday(year) == 4 || last_weekday(year - 1) == 3 { 53 } else { 52 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formats are those that released templates use; expected by Python's datetime.
    #[test]
    fn the_formats_of_real_templates_agree_with_python() {
        // 2024-02-29 13:05:09, a Thursday and a leap day.
        let time = WallTime::from_unix(1_709_211_909, 0);
        for (format, expected) in [
            ("%Y-%m-%d", "2024-02-29"),
            ("%d %b %Y", "29 Feb 2024"),
            ("%A, %B %-d, %Y at %-I:%M %p", "Thursday, February 29, 2024 at 1:05 PM"),
            ("%j %y %H:%M:%S %e|%-H|%_H|%^a", "060 24 13:05:09 29|13|13|THU"),
            ("%U %W %V %G %u %w", "08 09 09 2024 4 4"),
            ("%z%Z 100%% %Q %", " 100% %Q %"),
            ("%c", "Thu Feb 29 13:05:09 2024"),
        ] {
            assert_eq!(time.format(format), expected, "{format}");
        }
    }

    /// Dates before 1970, at turns of years and with an offset go wrong first.
    #[test]
    fn the_calendar_holds_at_its_edges() {
        for (unix, offset, expected) in [
            (0, 0, "1970-01-01 Thu 001 1970-W01"),
            (-1, 0, "1969-12-31 Wed 365 1970-W01"),
            (951_782_400, 0, "2000-02-29 Tue 060 2000-W09"),
            (1_609_459_199, 3600, "2021-01-01 Fri 001 2020-W53"),
            (4_107_542_400, 0, "2100-03-01 Mon 060 2100-W09"),
            (1_735_603_200, 0, "2024-12-31 Tue 366 2025-W01"),
        ] {
            let time = WallTime::from_unix(unix, offset);
            assert_eq!(time.format("%F %a %j %G-W%V"), expected);
        }
    }

    /// A template is a file of a stranger: no format may panic or run away.
    #[test]
    fn odd_formats_are_harmless() {
        let time = WallTime::from_unix(i64::MAX, i32::MIN);
        for format in ["%", "%%%", "%-", "%0", "%99999999999999999999Y", "%é", "%1000000d", ""] {
            assert!(time.format(format).len() < 200);
        }
    }
}
