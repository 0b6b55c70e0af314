"""Random sentences, articles and dialogues in plain Chinese for made-up files; the same number gives the same text."""

from __future__ import annotations

import random

PLACES = "青河 石桥 白塔 东岭 南浦 西湾 北原 临川 云山 平湖 柳城 安溪 海门 长林 武陵 高阳 金沙 龙泉 宝山 松江".split()
THINGS = "河流 车站 学校 图书馆 工厂 寺庙 博物馆 医院 公园 大桥 机场 港口 剧院 水库 隧道 集市 灯塔 古镇".split()
PEOPLE = "李明 王芳 张伟 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴敏 徐强 孙悦 胡军 朱琳 高峰 林晓 何平 郭亮 马超 罗兰".split()
TRADES = "工程师 教师 医生 画家 农民 记者 作家 律师 厨师 船长 司机 木匠 歌手 学者 商人 护士 演员 编辑 裁缝 园丁".split()
VERBS = "研究 修建 保护 介绍 观察 设计 记录 改造 收集 讨论 管理 参观 测量 整理 宣传 建造 捐助 维修 描写 调查".split()
TIMES = "春天 夏季 秋末 冬日 清晨 傍晚 周末 节日期间 雨季 丰收之后 战争结束后 改革开放以后 上世纪末 新世纪初".split()
FOODS = "米饭 面条 豆腐 青菜 鲤鱼 苹果 葡萄 茶叶 蜂蜜 红枣 核桃 莲藕 土豆 西瓜 牛肉 鸡蛋".split()
SENTENCES = (
    "{place}的{thing}建于{year}年，由{person}主持{verb}，至今仍在使用。",
    "{person}是{place}的一名{trade}，{time}常到{thing}附近{verb}当地的历史。",
    "当地人喜欢吃{food}，也把{food2}卖到{place2}，每年大约有{number}吨。",
    "{time}，{place}和{place2}之间的道路得到了{verb}，行人明显多了起来。",
    "据{person}回忆，那座{thing}原来只有{number}平方米，后来才逐渐扩大。",
    "为了{verb}这一带的{thing}，{person}请来了{number}位{trade}，前后用了{few}年。",
    "{place}气候温和，{time}的平均气温约为{few}度，适合种植{food}。",
    "“我们应该继续{verb}它，”{person}在{year}年的会议上说，“这关系到{place}的将来。”",
    "从{place}出发，步行{number}分钟就可以看到{thing}，旁边有一家卖{food}的小店。",
    "{person}写过一本关于{place2}的书，书中提到{thing}的次数超过{few}次。",
    "与{place}相比，{place2}的{thing}规模较小，但是每年接待的{trade}更多。",
    "{year}年以前，这里没有{thing}，居民要到{place2}去买{food}。",
)
QUESTIONS = (
    ("{place}的{thing}在哪里？", "它在{place}的东边，离{place2}大约{number}公里。"),
    ("请介绍一下{person}。", "{person}是一名{trade}，出生于{year}年，住在{place}。"),
    ("{few}加{number}等于几？", "{few}加{number}等于{sum}。"),
    ("列出两种{place}常见的食物。", "常见的食物有{food}和{food2}。"),
    ("为什么要{verb}{thing}？", "因为{thing}对{place}的居民很重要，{verb}它可以让更多人了解历史。"),
    ("{time}适合做什么？", "{time}适合到{place}的{thing}走一走，也可以尝尝当地的{food}。"),
    ("写一句描写{place}的话。", "{time}的{place}很安静，只有{thing}旁边还亮着灯。"),
)


def fill(template: str, rng: random.Random) -> str:
    few, number = rng.randint(2, 40), rng.randint(41, 3000)
    place, place2 = rng.sample(PLACES, 2)
    food, food2 = rng.sample(FOODS, 2)
    words = {"person": PEOPLE, "thing": THINGS, "trade": TRADES, "verb": VERBS, "time": TIMES}
    chosen = {name: rng.choice(values) for name, values in words.items()}
    return template.format(
        **chosen, place=place, place2=place2, food=food, food2=food2, year=rng.randint(1850, 2023), few=few,
        number=number, sum=few + number,
    )  # fmt: skip


def paragraph(rng: random.Random, least: int = 3, most: int = 9) -> str:
    return "".join(fill(rng.choice(SENTENCES), rng) for _ in range(rng.randint(least, most)))


def article(seed: int) -> tuple[str, list[str]]:
    """Title and paragraphs of document number `seed`; the same number gives the same document in every source."""
    rng = random.Random(f"article {seed}")
    title = f"{rng.choice(PLACES)}{rng.choice(THINGS)}（{seed}）"
    return title, [paragraph(rng) for _ in range(rng.randint(1, 5))]


def dialogue(seed: int) -> tuple[str, str, str]:
    """A question, its answer, and a worse answer."""
    rng = random.Random(f"dialogue {seed}")
    question, answer = rng.choice(QUESTIONS)
    both = fill(f"{question}\n{answer}", rng).split("\n")
    worse = rng.choice(["不知道。", "这个问题我不想回答。", both[1][: len(both[1]) // 3]])
    return f"{both[0]}（第{seed}题）", both[1], worse
