"""Real clean Chinese prose and generated junk, to measure what a filter keeps and what it catches.

Prose: paragraphs of Debian packages (manpages-zh, LibreOffice's help, Debian reference, fortunes-zh), downloaded with
apt-get and cached, and the texts of chinese-poetry. A paragraph of a manual counts as prose if at least half of its
characters are Chinese and it has a sentence mark and no roff escape. The paragraphs of a page are one document. Each
saying or story of fortunes-zh is one document.
"""

# ruff: noqa: E501 (junk samples are kept on one line, as on the web)
from __future__ import annotations

import glob
import gzip
import html
import os
import random
import re
import subprocess
from pathlib import Path

from artifacts.layout import cache_folder
from examples.poetry.extract import documents as poetry
from preprocess.sources.download import download, source_file

PACKAGES = ("manpages-zh", "libreoffice-help-zh-cn", "libreoffice-help-zh-tw", "fortunes-zh", "debian-reference-zh-cn")


def unpacked() -> Path:
    """Download and unpack the packages, unless they are in the cache. Returns the folder."""
    folder = cache_folder() / "debian" / "x"
    for package in PACKAGES:
        if (folder / package).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder.parent, check=True, capture_output=True)
        found = sorted(folder.parent.glob(f"{package}_*.deb"))[-1]
        subprocess.run(["dpkg", "-x", str(found), str(folder / package)], check=True)
    return folder


def _roff(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        if line.startswith(('.\\"', "'\\\"")):
            continue
        line = re.sub(r"\\f[A-Z]|\\f\(..|\\s[-+]?\d", "", line).replace("\\-", "-").replace("\\&", "")
        request = re.match(r"[.'](\w+)\s*(.*)", line)
        if request:
            inline = request[1] in ("B", "I", "BR", "IR", "RB", "RI", "BI", "IB")
            lines.append(request[2].replace('"', "") if inline else "")
        else:
            lines.append(line)
    return "\n".join(re.sub(r"\s*\n\s*", "", part) for part in re.split(r"\n\s*\n", "\n".join(lines)))


def _page(text: str) -> str:
    text = re.sub(r"(?s)<(script|style|head|pre)\b.*?</\1>", "", text)
    text = re.sub(r"<(p|div|h\d|li|br|td|tr|dt|dd|title|ul|section)\b[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def _prose(text: str) -> str:
    kept = []
    for part in text.split("\n"):
        part = re.sub(r"(?<=[^\x00-\x7f]) (?=[^\x00-\x7f])", "", part.strip())
        solid, chinese = len(re.sub(r"\s", "", part)), len(re.findall("[\u4e00-\u9fff]", part))
        if len(part) >= 15 and chinese >= 0.5 * solid and re.search("[，。；：！？]", part) and "\\" not in part:
            kept.append(part)
    return "\n".join(kept)


def clean_prose() -> dict[str, list[str]]:
    """Documents by source."""
    folder = str(unpacked())

    def files(pattern: str) -> list[str]:
        return sorted(path for path in glob.glob(f"{folder}/{pattern}", recursive=True) if os.path.getsize(path) > 200)

    def text(path: str) -> str:
        with (
            gzip.open(path, "rt", errors="replace") if path.endswith(".gz") else open(path, errors="replace") as stream
        ):
            return stream.read()

    found = {"manpages-zh": [_prose(_roff(text(path))) for path in files("manpages-zh/usr/share/man/zh_CN/man*/*.gz")]}
    for language in ("cn", "tw"):
        pages = files(f"libreoffice-help-zh-{language}/**/text/**/*.html")
        found[f"libreoffice-help-zh-{language}"] = [_prose(_page(text(path))) for path in pages]
    reference = files("debian-reference-zh-cn/usr/share/debian-reference/*.zh-cn.html")
    found["debian-reference-zh-cn"] = [_prose(_page(text(path))) for path in reference]
    fortunes = [text(f"{folder}/fortunes-zh/usr/share/games/fortunes/{n}") for n in ("tang300", "song100", "chinese")]
    sayings = re.split(r"\n%\n", re.sub("\x1b\\[[0-9;]*m", "", "\n%\n".join(fortunes)))
    found["fortunes-zh"] = [saying.strip() for saying in sayings]
    download("chinese-poetry")
    found["chinese-poetry"] = [row["text"] for row in poetry(source_file("chinese-poetry"), 5000) if row["text"]]
    return {name: [document for document in documents if document] for name, documents in found.items()}


def long_documents(megabytes: int, characters: int = 700) -> list[str]:
    """Documents of about `characters` each from chinese-poetry (traditional Chinese), `megabytes` of UTF-8 in total."""
    download("chinese-poetry")
    found: list[str] = []
    waiting: list[str] = []
    size = held = 0
    for row in poetry(source_file("chinese-poetry")):
        waiting.append(row["text"])
        held += len(row["text"])
        if held >= characters:
            found.append("\n".join(waiting))
            size += len(found[-1].encode())
            waiting, held = [], 0
            if size >= megabytes * 1_000_000:
                break
    return found


CITIES = "北京 上海 广州 深圳 杭州 南京 武汉 成都 重庆 西安 苏州 天津 郑州 长沙 青岛".split()
GOODS = "真皮沙发 保健品 减肥产品 手机壳 不锈钢管 化妆品 智能手表 车载净化器 红木家具 太阳能热水器 蓝牙耳机 羊毛地毯".split()
MENU = (
    "首页 新闻 财经 体育 娱乐 汽车 房产 科技 手机 数码 教育 健康 旅游 时尚 女性 亲子 游戏 视频 博客 论坛 图片 下载 商城 招聘 "
    "彩票 天气 地图 邮箱 帮助 登录 注册 关于 国际 国内 社会 军事 历史 文化 读书 股票 基金 理财"
).split()
ADVERTS = [
    "{c}{g}厂家直销，价格优惠，量大从优，支持货到付款，欢迎来电咨询，订购热线 400-{n}，客服微信 vx{n}。",
    "【{c}代开发票】本公司长期代开各类发票，税点低，可验证后付款，联系电话 1{n}，QQ {n}，微信同号，诚信合作。",
    "{c}{g}限时特价！！！原价 {n} 元，现在只要 99 元，点击链接立即购买，前 100 名送优惠券，七天无理由退货，正品保证。",
    "月入过万不是梦！{c}招兼职打字员，在家赚钱，日赚 300-500 元，无需押金，加 QQ {n} 咨询，名额有限，先到先得。",
    "注册送 58 元，首充送 100%！{c}最火的真人娱乐平台，百家乐、时时彩、老虎机应有尽有，24 小时在线客服，提款秒到。",
    "{c}专业办理无抵押贷款，当天放款，额度 1-50 万，凭身份证即可，信用卡套现、小额贷款请拨 1{n}，黑户也能做。",
    "{g}诚招代理，零风险加盟，总部扶持，全国包邮，一件代发。扫描二维码加微信 wx{n}，了解加盟费和招商政策。",
]
FURNITURE = [
    "您的位置：首页 > {m} > {m} > 正文 发布时间：2015-03-12 来源：{c}网 作者：admin 浏览次数：{n} 上一篇：没有了 下一篇：{m}",
    "版权所有 {c}{m}有限公司 京ICP备{n}号 技术支持：{c}网络 网站地图 | 联系我们 | 关于我们 | 友情链接 | 设为首页 | 加入收藏",
    "分享到：微信 QQ空间 新浪微博 收藏 打印本页 关闭窗口 相关阅读 热门推荐 猜你喜欢 发表评论 登录注册 查看更多",
    "您的浏览器版本过低，请启用 JavaScript。忘记密码？用户登录 免费注册 | 帮助中心 | 隐私政策 | 用户协议 | 客户端下载 | 举报",
    "本站声明：本文由网友上传，如有侵权请联系我们删除。免责声明 版权所有 未经授权不得转载 责任编辑：{c} 返回首页 返回顶部",
]
SPAM = [
    "buy cheap {s} online free shipping best price discount {s} outlet store 2015 {c}",
    "http://www.{s}{n}.com/ http://bbs.{s}.net/thread-{n}-1-1.html {s} hot sale {g}",
    "<a href='http://{s}.cn'>{s}</a> [url=http://{s}.com]{s}[/url] replica {s} watches handbags sunglasses",
    "SEO {s} backlinks casino poker viagra {s} {n} {n} click here now >>> {s}.info",
]
SHORT = [
    "点击查看",
    "好的",
    "谢谢分享！",
    "顶",
    "加载中…",
    "无",
    "暂无内容",
    "回复本楼",
    "404",
    "同上。",
    "[图片]",
    "转发微博",
]


def planted_junk(prose: list[str], count: int) -> dict[str, list[str]]:
    """Junk documents by kind, `count` of each. The random seed is fixed."""
    rng = random.Random(2024)

    def fill(template: str) -> str:
        for name, choices in (("{c}", CITIES), ("{g}", GOODS), ("{m}", MENU)):
            while name in template:
                template = template.replace(name, rng.choice(choices), 1)
        while "{n}" in template:
            template = template.replace("{n}", str(rng.randrange(10**7, 10**8)), 1)
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7))
        return template.replace("{s}", word)

    def some(parts: list[str], low: int, high: int) -> str:
        return "\n".join(fill(rng.choice(parts)) for _ in range(rng.randint(low, high)))

    def mojibake(text: str) -> str:
        way = rng.randrange(4)
        raw = text.encode()
        if way == 0:
            return raw.decode("latin-1")
        if way == 1:
            return raw.decode("gbk", "replace")
        if way == 2:
            return text.encode("gbk", "replace").decode("utf-8", "replace")
        return "".join(c if rng.random() < 0.9 else "锟斤拷" for c in text)

    def repeated(text: str) -> str:
        phrase = re.sub(r"\s", "", text)[: rng.randint(3, 40)]
        return rng.choice(["", "\n", " ", "，"]).join([phrase] * rng.randint(15, 60))

    samples = [text for text in prose if len(text) > 80]
    make = {
        "boilerplate": lambda: (
            rng.choice(["\n", " ", " | "]).join(rng.sample(MENU, rng.randint(12, 35)))
            if rng.random() < 0.5
            else some(FURNITURE, 1, 4)
        ),
        "repetition": lambda: repeated(rng.choice(samples)),
        "mojibake": lambda: mojibake(rng.choice(samples)[:400]),
        "half-width spam": lambda: some(SPAM, 1, 6),
        "adverts": lambda: some(ADVERTS, 1, 4),
        "too short": lambda: rng.choice(SHORT),
    }
    return {name: [maker() for _ in range(count)] for name, maker in make.items()}
